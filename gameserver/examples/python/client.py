"""A game client in Python: it queues, waits for a match, connects to the game server, and prints the result.

    client.py GATEWAY TOKEN        for example http://127.0.0.1:8080; needs websockets and cryptography

It plays any game that accepts {"type": "join", "token": …} and sends {"results": …} in its last message.
"""

import asyncio, hashlib, json, ssl, sys, urllib.request

import websockets
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

gateway, token = sys.argv[1:]


def call(method, path, body=None):
    """Sends a request to the gateway and returns the JSON of its answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(gateway + path, data, headers, method=method)) as response:
        return json.load(response)


async def wait_for(socket, wanted):
    """Prints the type of each event until one of the wanted type arrives, and returns its data."""
    async for frame in socket:
        event = json.loads(frame)
        print(event["type"], flush=True)
        if event["type"] == wanted:
            return event["data"]
        if event["type"] in ("Cancelled", "TimedOut", "Released"):
            break
    raise SystemExit(f"the ticket ended without {wanted}")


async def play(address, connect_token):
    """Connects to the game server, checks its key, joins, and returns the results."""
    context = ssl.create_default_context()
    # The certificate is self-signed. The fingerprint of its key, checked below, proves who the server is.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host = f"[{address['ip']}]" if ":" in address["ip"] else address["ip"]
    async with websockets.connect(f"wss://{host}:{address['tcp_port']}", ssl=context) as game:
        certificate = x509.load_der_x509_certificate(game.transport.get_extra_info("ssl_object").getpeercert(True))
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if hashlib.sha256(key).hexdigest() != address["fingerprint"]:
            raise SystemExit("wrong fingerprint: this is not the game server")
        await game.send(json.dumps({"type": "join", "token": connect_token}))
        return [json.loads(message) async for message in game][-1]["results"]


async def main():
    me = call("GET", "/v1/players/me")["player"]
    ticket = call("POST", "/v1/matchmaking/tickets", {"queue": "ranked", "latencies": {"eu": 20}})
    events = f"{gateway.replace('http', 'ws', 1)}/v1/ws?since={ticket['seq']}"
    async with websockets.connect(events, subprotocols=["garage.v1", f"bearer.{token}"]) as socket:
        match = await wait_for(socket, "PlayerMatched")
        connect_token = call("POST", f"/v1/sessions/{match['session']}/connect-token")["token"]
        results = await play(match, connect_token)
        print("place", next(result["place"] for result in results if result["player"] == me))
        print((await wait_for(socket, "Released"))["why"])


asyncio.run(main())
