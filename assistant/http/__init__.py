"""HTTP/1.1 on asyncio and h11: a small server and a small client, both bounded everywhere."""
