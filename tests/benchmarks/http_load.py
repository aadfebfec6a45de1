"""Many clients of one endpoint, in a process of their own and as light as HTTP allows, so that it is the server that
is measured.

    python -m tests.benchmarks.http_load HOST PORT

Reads JSON lines {"clients", "bodies"} from stdin and writes one line of JSON for each.

The bodies are shared among the clients; each client has one connection and sends its next body when the last one is
answered. Told per body: the status, and the seconds from sending to the first text of the answer (streams), and to
its end.
"""

import asyncio
import json
import sys
import time


async def client(host, port, bodies, answers):
    """Take bodies until there are none left."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while bodies:
            body = bodies.pop()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            began = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answers.append(await answer(reader, began))
    finally:
        writer.close()


async def answer(reader, began):
    """(status, seconds to the first text or None, seconds to the end) of one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, first = int(head.split(" ", 2)[1]), None
    if "content-length:" in head:
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            part = await reader.readexactly(size + 2)
            if first is None and (
                b'"reasoning_content":"' in part or b'"content":"' in part.replace(b'"content":""', b"")
            ):
                first = time.perf_counter() - began
        await reader.readexactly(2)
    return status, first, time.perf_counter() - began


async def load(host, port, clients, bodies):
    """Seconds of all of it, this process's processor seconds, and what each body got."""
    bodies, answers = [json.dumps(body).encode() for body in reversed(bodies)], []
    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(host, port, bodies, answers) for _ in range(clients)))
    return {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used, "answers": answers}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asyncio.run(load(sys.argv[1], int(sys.argv[2]), **json.loads(line)))), flush=True)
