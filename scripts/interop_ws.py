"""Every form of frame of live updates, by Python's websockets: interop_ws.py URL PID, where PID is the process of the server."""

import asyncio
import json
import os
import signal
import sys
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

http, pid = sys.argv[1], int(sys.argv[2])
ws = http.replace("http", "ws", 1)
AUTHORIZED = {"additional_headers": {"Authorization": "Bearer ann"}}


def request(method, path, body=None, token="ann"):
    head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(http + path, data, head, method=method)) as answer:
        return json.load(answer)


def submit(to):
    return request("POST", "/tasks", {"contract": "text.count", "input": {"to": to}})["task_id"]


async def rest(socket):
    """The messages up to the end, and the code of the close frame."""
    messages = []
    try:
        while True:
            messages.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
    except ConnectionClosed as closed:
        return messages, closed.rcvd and closed.rcvd.code


async def ask(socket, **message):
    await socket.send(json.dumps(message))


async def one_task():
    task = submit(20)
    async with connect(f"{ws}/ws/tasks/{task}", **AUTHORIZED) as socket:
        updates, code = await rest(socket)
    assert code == 1000, code
    assert [update["seq"] for update in updates] == list(range(1, len(updates) + 1))
    assert [update["data"] for update in updates if update["type"] == "chunk"] == list(range(20))
    assert updates[-1]["status"] == "completed" and updates[-1]["result"]["output"] == 20
    for after in (1, 7, len(updates)):
        async with connect(f"{ws}/ws/tasks/{task}?after={after}", **AUTHORIZED) as socket:
            assert await rest(socket) == (updates[after:], 1000)


async def many_tasks():
    tasks = [submit(5), submit(10), submit(100_000)]
    async with connect(f"{ws}/ws", **AUTHORIZED) as socket:
        for task in tasks:
            await ask(socket, type="subscribe", task_id=task)
        seen, ended = {task: 0 for task in tasks}, set()
        while len(ended) < 2:
            update = json.loads(await socket.recv())
            if update["type"] == "subscribed":
                assert seen[update["task_id"]] == 0
                continue
            seen[update["task_id"]] += 1
            assert update["seq"] == seen[update["task_id"]], update
            if update.get("status") == "completed":
                ended.add(update["task_id"])
        await ask(socket, type="cancel", task_id=tasks[2])
        async for message in socket:
            if json.loads(message).get("status") == "cancelled":
                break
        await ask(socket, type="subscribe", task_id=tasks[0], after=1_000)
        kinds = [json.loads(await socket.recv())["type"] for _ in range(2)]
        assert kinds[0] == "subscribed", kinds
        await ask(socket, type="unsubscribe", task_id=tasks[0])
        await ask(socket, type="subscribe", task_id="task_0000000000000000")
        while json.loads(await socket.recv()).get("code") != "task_not_found":
            pass
        # In parts, and a ping that is answered.
        message = json.dumps({"type": "cancel", "task_id": "task_0000000000000000"})
        await socket.send([message[:5], message[5:9], message[9:]])
        while json.loads(await socket.recv()).get("code") != "task_not_found":
            pass
        await asyncio.wait_for(await socket.ping(b"here"), 5)
    assert socket.close_code == 1000, socket.close_code
    # The owner alone.
    async with connect(f"{ws}/ws", additional_headers={"Authorization": "Bearer eve"}) as socket:
        await ask(socket, type="cancel", task_id=tasks[0])
        assert json.loads(await socket.recv())["code"] == "task_not_found"


async def who():
    socket = await connect(f"{ws}/ws", subprotocols=["bearer", "ann"])
    assert socket.subprotocol == "bearer"
    await socket.close()
    for status, options in (
        (401, {}),
        (401, {"subprotocols": ["bearer", "mallory"]}),
        (403, AUTHORIZED | {"origin": "https://evil.example"}),
    ):
        try:
            await connect(f"{ws}/ws", **options)
            raise AssertionError(status)
        except InvalidStatus as refused:
            assert refused.response.status_code == status, (refused.response.status_code, options)
    async with connect(f"{ws}/ws", origin=http, **AUTHORIZED):
        pass


async def broken():
    def frame(opcode, data):
        return lambda socket: socket.transport.write(Frame(opcode, data).serialize(mask=True))

    async def texts(socket, count=2):
        for _ in range(count):
            await socket.send("{}")

    for code, act in (
        # Reserved bits, with a mask and without a payload.
        (1002, lambda socket: socket.transport.write(b"\xc1\x80mask")),
        (1002, frame(Opcode.CONT, b"{}")),
        (1002, lambda socket: socket.transport.write(Frame(Opcode.TEXT, b"{}").serialize(mask=False))),
        (1003, lambda socket: socket.send(b"{}")),
        (1007, frame(Opcode.TEXT, b"\xff")),
        (1008, texts),
        (1008, lambda socket: floods(socket)),
        (1009, lambda socket: socket.send("x" * 300_000)),
        (1009, lambda socket: socket.send(["x" * 200_000] * 6)),
    ):
        socket = await connect(f"{ws}/ws", **AUTHORIZED)
        try:
            done = act(socket)
            if done is not None:
                await done
        except ConnectionClosed:
            pass
        assert (await rest(socket))[1] == code, (code, socket.close_code)


async def floods(socket):
    for _ in range(400):
        await socket.ping()


async def end():
    socket = await connect(f"{ws}/ws", **AUTHORIZED)
    # Longer than two pings of the server, which the library answers.
    await asyncio.sleep(1.5)
    os.kill(pid, signal.SIGINT)
    assert await rest(socket) == ([], 1001)


async def main():
    for part in (one_task, many_tasks, who, broken, end):
        await asyncio.wait_for(part(), 60)
        print(f"{part.__name__}: as expected")


asyncio.run(main())
