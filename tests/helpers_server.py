"""A web server for tests, archives for it, and what a folder holds."""

import http.server
import io
import tarfile
import threading
import zipfile


class Server(http.server.ThreadingHTTPServer):
    """Gives out `files`; breaks off after `cuts[path]` bytes, each number once; notes what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.asked, self.ranges, self.lies, self.version = {}, {}, [], True, {}, '"1"'
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, name = self.server, self.path[1:]
        asked = self.headers.get("Range")
        server.asked.append((name, asked))
        if name not in server.files:
            self.send_error(404, "Not Found")
            return
        data = server.files[name]
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.version:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.version)
        if server.lies.get(name) is not None:
            self.send_header("Content-Length", str(server.lies[name]))
        else:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = server.cuts.get(name, [])
        end = cuts.pop(0) if cuts else len(data)
        self.wfile.write(data[start:end])
        self.close_connection = True


def zip_of(files):
    """Return the bytes of a zip; names may be ZipInfo."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tar_of(files, mode="w:gz", **special):
    """Return the bytes of a tar of files, and of one special member (name, type, linkname)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if special:
            info = tarfile.TarInfo(special["name"])
            info.type, info.linkname = special["type"], special.get("linkname", "")
            archive.addfile(info)
    return data.getvalue()


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
