"""A bucket on this machine: `python tests/bucket.py PORT` serves gs://bucket.

An emulator of Google's storage from PyPI, with two things that TensorStore needs and
it lacks: the generation of a file that is read, and writes on condition of it. That
it cannot rename is said in a way that is not tried again.
"""

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import parse_qs, urlparse


def serve(port: int) -> None:
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    download, post = objects.download, server.RequestHandler.do_POST

    def download_with_generation(request, response, storage, *args, **more):
        download(request, response, storage, *args, **more)
        bucket, name = request.params["bucket_name"], request.params["object_id"]
        if response.status < 400:
            generation = storage.get_file_obj(bucket, name)["generation"]
            response["x-goog-generation"] = generation

    def post_on_condition(self) -> None:
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        wanted, status = query.get("ifGenerationMatch"), 0
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.rfile, rfile = io.BytesIO(body), self.rfile
        if found := re.search(rb'"name": *"([^"]*)"', body):  # of several parts
            query.setdefault("name", found[1].decode())
        if "/moveTo/" in url.path:
            status = 400
        if wanted is not None and "name" in query:
            bucket = url.path.split("/b/")[1].split("/")[0]
            there = self.storage.objects.get(bucket, {}).get(query["name"], {})
            if there.get("generation", "0") != wanted:
                status = 412
        if not status:
            post(self)
            self.rfile = rfile
            return
        self.rfile = rfile
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    objects.download = download_with_generation
    server.RequestHandler.do_POST = post_on_condition
    server.create_server("127.0.0.1", port, True, default_bucket="bucket").run()


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """Serves for as long as the context lasts; gives the environment of its users."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=10)
                break
            assert process.poll() is None, "the emulator does not start"
            time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "EPATH_USE_TF": "0",
        }
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    serve(int(sys.argv[1]))
