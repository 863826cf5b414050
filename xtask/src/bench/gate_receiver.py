"""A minimal receiver on Starlette that does the same durable work as `cutover gate serve`: for the gate's benchmark.

Temporary file, fsync, rename, fsync of the directory, one row appended under flock, fsync, answer. The blocking part runs
on Starlette's thread pool.
"""

import datetime
import fcntl
import hashlib
import json
import os
import re
import sys

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

ROOT = os.environ["ROOT"]
ACCEPTED = set(os.environ["ACCEPTED"].split())
ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
INDEX = os.path.join(ROOT, "index.jsonl")


def finish(file, temporary, directory, host, episode, sha256, size, commit):
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.rename(temporary, os.path.join(directory, episode + ".tar.zst"))
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    row = {"received_at_wall": now, "host_id": host, "episode_id": episode, "sha256": sha256, "size_bytes": size,
           "schema_version": 1, "commit": commit}
    index = os.open(INDEX, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    fcntl.flock(index, fcntl.LOCK_EX)
    os.write(index, (json.dumps(row, sort_keys=True) + "\n").encode())
    os.fsync(index)
    os.close(index)


async def put(request):
    host, episode = request.path_params["host"], request.path_params["episode"]
    commit = request.headers.get("x-code-commit", "")
    if not ID.match(host) or not ID.match(episode) or not re.match(r"[0-9a-f]{40}\Z", commit):
        return JSONResponse({"error": "bad"}, 400)
    if commit not in ACCEPTED:
        return JSONResponse({"error": "commit-not-accepted"}, 412)
    directory = os.path.join(ROOT, "episodes", host)
    os.makedirs(directory, exist_ok=True)
    temporary = os.path.join(directory, f".{episode}.part")
    digest, size = hashlib.sha256(), 0
    file = open(temporary, "wb")
    async for chunk in request.stream():
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    sha256 = digest.hexdigest()
    await run_in_threadpool(finish, file, temporary, directory, host, episode, sha256, size, commit)
    return JSONResponse({"status": "stored", "sha256": sha256, "size_bytes": size}, 201)


app = Starlette(routes=[Route("/v1/episodes/{host}/{episode}", put, methods=["PUT"])])

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
