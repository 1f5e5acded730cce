"""An annotator without a browser, who decides as fast as the server answers. Only the standard library."""

import http.client
import json
from urllib.parse import urlsplit


class Client:
    """Ranks what the server shows, and sends a decision again until there is an answer.

    Args:
        link: What the command printed.
    """

    def __init__(self, link):
        self.address = urlsplit(link).netloc
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("GET", f"/?{urlsplit(link).query}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        connection.close()
        self.connection = None

    def ask(self, path, said=None):
        """Asks once; OSError or HTTPException if there is no answer."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.address, timeout=60)
        headers = {"cookie": self.cookie, "content-type": "application/json"}
        body = None if said is None else json.dumps(said)
        try:
            self.connection.request("GET" if said is None else "POST", f"/api/{path}", body, headers)
            answer = self.connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        return answer.status, content
