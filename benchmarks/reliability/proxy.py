"""A proxy on 127.0.0.1, before a real server, that misbehaves on demand: it refuses, hangs, delays, cuts, drips, or answers 500."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

HOST = "127.0.0.1"
PASS, REFUSE, HANG, DELAY, CUT, DRIP, ERROR = MODES = ("pass", "refuse", "hang", "delay", "cut", "drip", "error")
END_OF_HEAD = b"\r\n\r\n"
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: close\r\n\r\nout of order\n"


class Proxy:
    """`url` stands for the server at `target` until `close`; `misbehave` says how it answers from now on.

    REFUSE closes the port, so a caller sees what it would see of a dead server. HANG takes requests and never answers. DELAY waits
    `delay_s` before it passes a request on. CUT ends each answer after one byte of its body, DRIP gives a byte of it each `drip_s`.
    """

    def __init__(self, target: str, *, delay_s: float = 3.0, drip_s: float = 0.1):
        self.target, self.delay_s, self.drip_s = urlsplit(target), delay_s, drip_s
        self.mode = PASS
        self.met: Counter[str] = Counter()  # connections a mode: what the callers really went through
        self._live: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy")
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, HOST, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"

    def misbehave(self, mode: str) -> None:
        """From now on, for connections that are open (they end) and those to come."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}; known are {', '.join(MODES)}")
        self._call(self._switch(mode))

    def close(self) -> None:
        self._call(self._switch(REFUSE))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- in the loop's thread ---

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _switch(self, mode: str) -> None:
        if mode == REFUSE and self.mode != REFUSE:
            self._server.close()
        if mode != REFUSE and self.mode == REFUSE:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.mode = mode
        live = list(self._live)
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._live.add(task)
        self.met[self.mode] += 1
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                if self.mode == HANG:
                    await asyncio.Event().wait()
                elif self.mode == ERROR:
                    await self._refuse_politely(reader, writer)
                else:
                    await self._connect(reader, writer)
        finally:
            self._live.discard(task)
            writer.close()

    async def _refuse_politely(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """500 once the whole request is read: closing earlier would reset the connection, which is another fault."""
        head = await reader.readuntil(END_OF_HEAD)
        length = next((int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        await reader.readexactly(length)
        writer.write(SERVER_ERROR)
        await writer.drain()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == DELAY:
            await asyncio.sleep(self.delay_s)
        from_server, to_server = await asyncio.open_connection(self.target.hostname, self.target.port)
        pumps = [asyncio.ensure_future(self._up(reader, to_server)), asyncio.ensure_future(self._down(from_server, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            to_server.close()

    async def _up(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        mine, its = f"ost: {HOST}:{self.port}".encode(), f"ost: {self.target.netloc}".encode()
        while chunk := await reader.read(2**16):
            to_server.write(chunk.replace(mine, its))  # the Host of each request: the server knows itself by its own address alone
            await to_server.drain()

    async def _down(self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode in (CUT, DRIP):
            writer.write(await from_server.readuntil(END_OF_HEAD))
            while byte := await from_server.read(1):
                writer.write(byte)
                await writer.drain()
                if self.mode == CUT:
                    return
                await asyncio.sleep(self.drip_s)
        while chunk := await from_server.read(2**16):
            writer.write(chunk)
            await writer.drain()
