"""A small server of the OpenAI protocol in a thread, which records what it is asked."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`reply(path, body)` returns (status, object or text, headers) for each request; it may raise to hang up."""

    def __init__(self, reply):
        self.reply, self.requests, self.keys, self.lock = reply, [], [], threading.Lock()
        self.busy = self.most_busy = 0

    def handle(self, path, body, headers):
        with self.lock:
            self.requests.append((path, body))
            self.keys.append(headers.get("Authorization"))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            return self.reply(path, body)
        finally:
            with self.lock:
                self.busy -= 1


@contextmanager
def serving(reply):
    """Yield (address, Server) of a running server."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            answer = server.handle(self.path, body, self.headers)
            status, content, headers = (*answer, {})[:3] if isinstance(answer, tuple) else (200, answer, {})
            content = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            for name, value in {"Content-Length": len(content.encode()), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def completion(text, **choice):
    """Return the reply of a chat completion."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"} | choice], "usage": {"completion_tokens": 3}}
