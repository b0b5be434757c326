"""HTML pages for tests."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page with balanced tags: attributes, and the tokens of each sample as [(classes, title, text), ..]."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.attributes, self.samples, self.text = [], [], [], [], ""
        self.feed(content.decode())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        values = dict(attrs)
        if tag not in VOID:
            self.open.append((tag, values.get("class", "")))
        if tag == "section":
            self.samples.append([])
        if self.samples and tag == "span" and values["class"].split()[0] == "t":
            self.samples[-1].append((set(values["class"].split()), values["title"], ""))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.samples and self.open and self.open[-1][1].split()[:1] == ["t"]:
            classes, title, text = self.samples[-1][-1]
            self.samples[-1][-1] = (classes, title, text + data)
