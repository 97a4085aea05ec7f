"""A server in Nomad's place, for what is sent to it and for answers that a real one would not give."""

import http.server
import json
import threading

import pytest


@pytest.fixture
def nomad():
    """A server that records requests and answers each as it is told: status, body, and headers where there are some."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            size = int(self.headers.get("Content-Length") or 0)
            server.seen.append((self.command, self.path, dict(self.headers), self.rfile.read(size)))
            status, body, *headers = server.by_path.get(self.path.partition("?")[0], server.answers)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"X-Nomad-Index": "42", "Content-Length": len(raw), **dict(*headers)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = do_CONNECT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.answers, server.by_path = [], (200, []), {}
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
