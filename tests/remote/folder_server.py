#!/usr/bin/env python3
"""A web server for tests that shows files as a datastore browser does: folder_server.py DIR [OPTION]...

Prints its port.  DIR/DATASTORE/... are the files of /folder/...?dcPath=ha-datacenter&dsName=DATASTORE.
tls=CERT,KEY            speak TLS
user=NAME:PASSWORD      Basic authentication
session                 not Basic: a login at /sdk and a cookie, as vCenter's
drop=N                  each file's body ends after N bytes, in the middle
bad=OFFSET              a body never gets beyond this byte of a file
no-ranges               parts are not known
page=FILE               the listing is this, whatever is asked
expire=N                a session is good for N requests
status=CODE             all answers but a login's
"""
import base64
import html
import http.server
import pathlib
import re
import ssl
import sys
import time
import urllib.parse
import uuid

root = pathlib.Path(sys.argv[1])
options = dict(o.partition('=')[::2] for o in sys.argv[2:])
sessions = {}


def quote(text):
    """As hostd does: all but letters and digits."""
    return ''.join(c if c.isalnum() and c.isascii() else ''.join(f'%{b:02x}' for b in c.encode()) for c in text)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def reply(self, status, body=b'', kind='text/plain', headers=()):
        self.send_response(status)
        for h in headers:
            self.send_header(*h)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self):
        if 'user' not in options:
            return True
        if 'session' in options:
            m = re.search(r'vmware_soap_session="?([0-9a-f-]+)', self.headers.get('Cookie', ''))
            left = sessions.get(m[1], 0) if m else 0
            if left > 0:
                sessions[m[1]] -= 1
                return True
            self.reply(401, b'log in at /sdk')
            return False
        good = 'Basic ' + base64.b64encode(options['user'].encode()).decode()
        if self.headers.get('Authorization') == good:
            return True
        self.reply(401, headers=[('WWW-Authenticate', 'Basic realm="VMware HTTP server"')])
        return False

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        name, password = (html.escape(x, quote=False) for x in options['user'].split(':'))
        if self.path == '/sdk' and f'<userName>{name}</userName><password>{password}</password>' in body and \
                '>SessionManager<' in body:
            token = str(uuid.uuid4())
            sessions[token] = int(options.get('expire', 1 << 30))
            self.reply(200, headers=[('Set-Cookie', f'vmware_soap_session="{token}"; Path=/; HttpOnly; Secure;')])
        else:
            self.reply(500, b'<faultcode>ServerFaultCode</faultcode>', 'text/xml')

    def do_GET(self):
        if not self.allowed():
            return
        if 'status' in options:
            self.reply(int(options['status']), b'words of an error page')
            return
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        path = urllib.parse.unquote(url.path)
        if path != '/folder' and not path.startswith('/folder/'):
            self.reply(404)
            return
        if 'page' in options:
            self.reply(200, pathlib.Path(options['page']).read_bytes(), 'text/html; charset=utf8')
            return
        if 'dsName' not in query:
            self.datastores()
            return
        where = root / query['dsName'][0] / path[len('/folder/'):]
        if where.is_dir():
            self.folder(where, path, query['dsName'][0])
        elif where.is_file():
            self.file(where)
        else:
            self.reply(404)

    def page(self, title, rows, heads):
        body = ('<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN" "http://www.w3.org/TR/html4/strict.dtd">\n'
                '<html><head><meta http-equiv="content-type" content="text/html; charset=utf8">'
                f'<title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<table>\n<tr>'
                + ''.join(f'<th>{h}</th>' for h in heads) + '</tr><tr><th colspan="3"><hr></th></tr>\n'
                + '\n'.join(rows) + '\n<tr><th colspan="3"><hr></th></tr></table>\n</body></html>\n')
        self.reply(200, body.encode(), 'text/html; charset=utf8')

    def datastores(self):
        rows = [f'<tr><td><a href="/folder?dcPath=ha%2ddatacenter&amp;dsName={quote(d.name)}">{html.escape(d.name)}</a>'
                '</td><td align="right">107374182400</td><td align="right">53687091200</td></tr>'
                for d in sorted(root.iterdir())]
        self.page('Datastores in datacenter ha-datacenter', rows, ('Name', 'Capacity', 'Free'))

    def folder(self, where, path, store):
        tail = f'?dcPath=ha%2ddatacenter&amp;dsName={quote(store)}'
        up = path.rstrip('/').rpartition('/')[0] if path.rstrip('/') != '/folder' else ''
        rows = [f'<tr><td><a href="{up or "/folder"}{tail if up else "?dcPath=ha%2ddatacenter"}">Parent Directory</a></td>'
                '<td>&nbsp;</td><td align="right">  - </td></tr>']
        for p in sorted(where.iterdir()):
            date = time.strftime('%d-%b-%Y %H:%M', time.gmtime(p.stat().st_mtime))
            slash = '/' if p.is_dir() else ''
            size = '  - ' if p.is_dir() else p.stat().st_size
            inner = '/'.join(quote(x) for x in p.relative_to(root / store).parts)
            rows.append(f'<tr><td><a href="/folder/{inner}{slash}{tail}">{html.escape(p.name)}{slash}</a></td>'
                        f'<td align="right">{date}</td><td align="right">{size}</td></tr>')
        self.page(f'Index of {html.escape(path)} on datastore {store} in datacenter ha-datacenter', rows,
                  ('Name', 'Last modified', 'Size'))

    def file(self, path):
        size = path.stat().st_size
        m = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        whole = not m or 'no-ranges' in options
        first, last = (0, size - 1) if whole else (int(m[1]), min(int(m[2]), size - 1))
        if first >= size and not whole:
            self.reply(416)
            return
        self.send_response(200 if whole else 206)
        if not whole:
            self.send_header('Content-Range', f'bytes {first}-{last}/{size}')
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Last-Modified', time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(path.stat().st_mtime)))
        self.send_header('Content-Length', str(last - first + 1))
        self.end_headers()
        with open(path, 'rb') as f:
            f.seek(first)
            data = f.read(last - first + 1)
        cut = len(data)
        if 'drop' in options:
            cut = min(cut, int(options['drop']))
        if 'bad' in options:
            cut = max(0, min(cut, int(options['bad']) - first)) if first <= int(options['bad']) <= last else cut
        self.wfile.write(data[:cut])
        if cut < len(data):
            self.wfile.flush()
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, address):
        pass  # clients that do not trust us


server = Server(('127.0.0.1', 0), Handler)
if 'tls' in options:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*options['tls'].split(','))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_port, flush=True)
server.serve_forever()
