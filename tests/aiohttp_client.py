"""Upload standard input with aiohttp several times; print each reply's status and size.

python tests/aiohttp_client.py URL AUTHORITY TRIES
"""

from __future__ import annotations

import asyncio
import io
import ssl
import sys

import aiohttp


async def main(url: str, authority: str, tries: str) -> None:
    upload = sys.stdin.buffer.read()
    context = ssl.create_default_context(cafile=authority) if authority else False
    for _ in range(int(tries)):
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.post(url, data=io.BytesIO(upload), ssl=context) as response,
        ):
            print(response.status, len(await response.read()))


asyncio.run(main(*sys.argv[1:]))
