"""Plays one match on any game that says `result` at its end: queues, waits, connects to the game server, is paid.

    client.py GATEWAY TOKEN        for example http://127.0.0.1:8080; needs websockets and cryptography
"""

import asyncio, hashlib, json, ssl, sys, urllib.request

import websockets
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

gateway, token = sys.argv[1:]


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(gateway + path, data, headers, method=method)) as response:
        return json.load(response)


async def until(socket, wanted):
    """The data of the next event of this type."""
    async for frame in socket:
        event = json.loads(frame)
        print(event["type"], flush=True)
        if event["type"] == wanted:
            return event["data"]
        if event["type"] in ("Cancelled", "TimedOut", "Released"):
            break
    raise SystemExit(f"there will be no {wanted}")


async def race(address, admission):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin below says who it is
    host = f"[{address['ip']}]" if ":" in address["ip"] else address["ip"]
    async with websockets.connect(f"wss://{host}:{address['tcp_port']}", ssl=context) as game:
        shown = x509.load_der_x509_certificate(game.transport.get_extra_info("ssl_object").getpeercert(True))
        key = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if hashlib.sha256(key).hexdigest() != address["fingerprint"]:
            raise SystemExit("this is not the game server")
        await game.send(json.dumps({"type": "join", "token": admission["token"]}))
        return [json.loads(frame) async for frame in game][-1]["results"]


async def main():
    me = call("GET", "/v1/players/me")["player"]
    ticket = call("POST", "/v1/matchmaking/tickets", {"queue": "ranked", "latencies": {"eu": 20}})
    events = f"{gateway.replace('http', 'ws', 1)}/v1/ws?since={ticket['seq'] - 1}"
    async with websockets.connect(events, subprotocols=["garage.v1", f"bearer.{token}"]) as socket:
        address = await until(socket, "PlayerMatched")
        admission = call("POST", f"/v1/sessions/{address['session']}/connect-token")
        results = await race(address, admission)
        print("place", next(result["place"] for result in results if result["player"] == me))
        print((await until(socket, "Released"))["why"])


asyncio.run(main())
