#!/usr/bin/env python3
"""A web server for tests that sends parts of files: range_server.py DIR [drop=N] [etag-changes]

Prints its port.  drop=N: every N-th request ends in the middle.  no-ranges: as old servers do.
"""
import http.server
import os
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
options = dict(o.partition('=')[::2] for o in sys.argv[2:])
requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_GET(self):
        global requests
        requests += 1
        path = root / self.path.lstrip('/')
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        m = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        if not m or 'no-ranges' in options:
            self.send_response(200)
            self.send_header('Content-Length', str(size))
            self.end_headers()
            self.wfile.write(path.read_bytes())
            return
        first, last = int(m[1]), min(int(m[2]), size - 1)
        if first >= size:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header('Content-Range', f'bytes {first}-{last}/{size}')
        self.send_header('Content-Length', str(last - first + 1))
        self.send_header('ETag', f'"{requests if "etag-changes" in options else path.stat().st_mtime_ns}"')
        self.end_headers()
        with open(path, 'rb') as f:
            f.seek(first)
            data = f.read(last - first + 1)
        if 'drop' in options and requests % int(options['drop']) == 0:
            self.wfile.write(data[:len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data)


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
