"""The description of the HTTP interface is right: schemathesis queries the real server, with volumes in memory."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from memory_volume import TOKEN, Memory

import nbdpull
from nbdpull.serving.http import auth, endpoint, finish, ovirt, volumes
from nbdpull.serving.http.app import App

FILE = Path(nbdpull.__file__).parent / "schemas" / "openapi.json"
# All but those that judge what is accepted: an empty parameter is as good as none, which no schema says.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def routes():
    token, asked = auth.Token(TOKEN.encode()), finish.Finish()
    asked.begin()
    threading.Thread(target=lambda: asked.wait(60) and asked.answer(200, {"committed": True}), daemon=True).start()
    disk = Memory(["data", "zero", "clean", "data"] * 3, "incremental", tail=100)
    served = {"vda": disk}
    return token, [*volumes.routes(served), *ovirt.routes(served, token), *asked.routes()]


def test_every_path_and_method_is_described():
    described = {(path, method.upper()) for path, methods in json.loads(FILE.read_text())["paths"].items()
                 for method in methods}  # fmt: skip
    there = set()
    for route in routes()[1]:
        names = iter(["{disk}" if route.path[0] == "exports" else "{ticket}"])
        path = "/" + "/".join(part if part is not None else next(names) for part in route.path)
        there |= {(path, method) for method in route.allowed}
    assert described == there


def test_all_answers_are_as_described(tmp_path):
    token, known = routes()
    document = json.loads(FILE.read_text())
    for path in document["paths"].values():  # else nearly all answers are 404 and 403
        for method in path.values():
            for parameter in method.get("parameters", []):
                known_one = {"disk": "vda", "ticket": token.ticket("vda")}.get(parameter["name"])
                if known_one:
                    parameter["schema"]["enum"] = [known_one]
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(document))
    with endpoint.secured(App(known, token), "--http", "127.0.0.1:0", None, None) as url:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", described, "--url", url,
             "-H", f"Authorization: Bearer {TOKEN}", "--checks", CHECKS, "--phases", "coverage,fuzzing",
             "--max-examples", "5", "--generation-deterministic", "--no-shrink", "--request-timeout", "10",
             "--exclude-method", "HEAD"],
            cwd=tmp_path, capture_output=True, text=True, timeout=100, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    asked = int(re.search(r"(\d+) generated", done.stdout)[1])
    assert asked > 100, done.stdout
