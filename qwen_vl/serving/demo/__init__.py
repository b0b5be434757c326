"""The web page: a conversation about images, with boxes."""
