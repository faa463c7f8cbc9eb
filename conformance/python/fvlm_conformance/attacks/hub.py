"""A hub on loopback that has the demo model: list of files, HEAD, ranges. For downloads that are killed."""

import hashlib
import http.server
import json
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as `org/name`; each block of 64 KiB takes `pause` seconds."""

    def __init__(self, folder, pause=0.002):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        hub = self
        self.pause = pause

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                if self.path.startswith("/api/models/org/name/revision/"):
                    siblings = [{"rfilename": name, "size": len(files[name])} for name in sorted(files)]
                    return self.send(
                        200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode(), {}, body
                    )
                name = self.path.rsplit("/", 1)[-1]
                if name not in files:
                    return self.send(404, b"", {}, body)
                whole = files[name]
                headers = {"ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "X-Repo-Commit": COMMIT}
                start = 0
                if "Range" in self.headers:
                    start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
                self.send(206 if start else 200, whole[start:], headers, body)

            def send(self, status, contents, headers, body):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(contents)))
                self.end_headers()
                try:
                    for start in range(0, len(contents) if body else 0, 1 << 16):
                        self.wfile.write(contents[start : start + (1 << 16)])
                        time.sleep(hub.pause)
                except OSError:
                    # Whoever asked was killed.
                    self.close_connection = True

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """Whoever asked was killed."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
