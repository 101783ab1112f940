"""A bucket on this machine: its objects in a dictionary, served to tensorstore and Google's client over HTTP.

etils reaches buckets through TensorFlow, which knows one address only; it gets a backend of the same dictionary.
"""

import contextlib
import fnmatch
import http.server
import io
import itertools
import json
import os
import threading
import urllib.parse

from etils.epath import backend, gpath, stat_utils

BUCKET = "bucket"


class Handler(http.server.BaseHTTPRequestHandler):
    """The requests of the JSON API that tensorstore and `Client.get_bucket` make."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = url.path.removeprefix("/upload").split("/", 6)[4:]  # /storage/v1/b/BUCKET[/o[/OBJECT]]
        if parts == [BUCKET]:
            return self._answer(200, {"kind": "storage#bucket", "name": BUCKET})
        if parts[0] != BUCKET:
            return self._answer(404)
        with self.server.bucket.lock:
            return self._object(query, urllib.parse.unquote(parts[2]) if len(parts) > 2 else query.get("name"), data)

    do_GET = do_POST = do_DELETE = _handle

    def _object(self, query, key, data):
        objects = self.server.bucket.objects
        if key is None:
            first, end = query.get("startOffset", ""), query.get("endOffset")
            found = [x for x in sorted(objects) if x >= first and (not end or x < end)]
            return self._answer(200, {"items": [self._metadata(x) for x in found]})
        generation, stored = objects.get(key, (0, None))
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return self._answer(412)
        if self.command == "POST":
            objects[key] = (next(self.server.bucket.generations), data)
            return self._answer(200, self._metadata(key))
        if stored is None:
            return self._answer(404)
        if self.command == "DELETE":
            del objects[key]
            return self._answer(204)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        status, headers = 200, {"x_goog_generation": str(generation)}
        if "Range" in self.headers:
            first, last = (int(x or len(stored)) for x in self.headers["Range"].removeprefix("bytes=").split("-"))
            last = min(last, len(stored) - 1)
            status, headers["Content_Range"] = 206, f"bytes {first}-{last}/{len(stored)}"
            stored = stored[first : last + 1]
        return self._answer(status, stored, **headers)

    def _metadata(self, key):
        generation, data = self.server.bucket.objects[key]
        return {"name": key, "bucket": BUCKET, "generation": str(generation), "size": str(len(data))}


class Bucket(backend.Backend):
    """The objects, {key: (generation, bytes)}, and etils' file operations on them."""

    def __init__(self):
        self.objects, self.lock, self.generations = {}, threading.RLock(), itertools.count(1)

    def _key(self, path):
        bucket, _, key = os.fspath(path).removeprefix("gs://").partition("/")
        if bucket != BUCKET:
            raise FileNotFoundError(f"the bucket {bucket} does not exist")
        return key.rstrip("/")

    def _inside(self, path):
        return [key for key in sorted(self.objects) if key.startswith(self._key(path) + "/")]

    def _write(self, key, data):
        with self.lock:
            self.objects[key] = (next(self.generations), data)

    def open(self, path, mode):
        key = self._key(path)
        if mode.startswith("r") and key not in self.objects:
            raise FileNotFoundError(path)
        write = self._write

        class Object(io.BytesIO):
            def close(self):
                if not self.closed and not mode.startswith("r"):
                    write(key, self.getvalue())
                super().close()

        file = Object(self.objects[key][1] if mode.startswith("r") else b"")
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def isdir(self, path):
        return bool(self._inside(path))

    def exists(self, path):
        return self._key(path) in self.objects or self.isdir(path)

    def listdir(self, path):
        names = {key.removeprefix(self._key(path) + "/").split("/")[0] for key in self._inside(path)}
        return sorted(names - {""})

    def glob(self, path):
        pattern = self._key(path)
        folders = {"/".join(key.split("/")[:n]) for key in self.objects for n in range(1, key.count("/") + 2)}
        same = [x for x in folders if fnmatch.fnmatch(x, pattern) and x.count("/") == pattern.count("/")]
        return [f"gs://{BUCKET}/{x}" for x in sorted(same)]

    def walk(self, top, *, top_down=True, on_error=None):
        raise NotImplementedError

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if not exist_ok and self.exists(path):
            raise FileExistsError(path)
        self._write(self._key(path) + "/", b"")  # as other clients mark an empty folder

    def mkdir(self, path, *, exist_ok=False, mode=None):
        self.makedirs(path, exist_ok=exist_ok)

    def rmtree(self, path):
        for key in self._inside(path):
            self.objects.pop(key, None)  # several threads may remove

    def remove(self, path):
        if self.objects.pop(self._key(path), None) is None:
            raise FileNotFoundError(path)

    def rename(self, path, dst):
        for key in [self._key(path), *self._inside(path)]:
            if key in self.objects:
                self._write(self._key(dst) + key.removeprefix(self._key(path)), self.objects.pop(key)[1])

    replace = rename

    def copy(self, path, dst, overwrite):
        self._write(self._key(dst), self.objects[self._key(path)][1])

    def stat(self, path):
        if not self.exists(path):
            raise FileNotFoundError(path)
        length = 0 if self.isdir(path) else len(self.objects[self._key(path)][1])
        kind = {"is_directory": self.isdir(path), "length": length, "mode": 0o666}
        return stat_utils.StatResult(**kind, mtime=0, owner=None, group=None)


@contextlib.contextmanager
def served(patch):
    """An empty bucket for this process. patch: a pytest.MonkeyPatch."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.bucket = Bucket()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://localhost:{server.server_port}"
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    patch.setenv("STORAGE_EMULATOR_HOST", url)
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", server.bucket)
    yield server.bucket
    server.shutdown()
