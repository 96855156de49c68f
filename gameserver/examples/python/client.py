"""A game client in Python: it queues, waits for a match, accepts it if the queue wants that, connects to the game server, and prints the result.

    client.py GATEWAY TOKEN        for example http://127.0.0.1:8080; needs websockets and cryptography

It plays any game that accepts {"type": "join", "token": …} and sends {"results": …} in its last message.
"""

import asyncio, hashlib, json, ssl, sys, urllib.error, urllib.request

import websockets
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

gateway, token = sys.argv[1:]


async def call(method, path, body=None):
    """Sends a request to the gateway and returns the JSON of its answer. After a 429, waits and tries again."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(gateway + path, data, headers, method=method)) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            await asyncio.sleep(int(error.headers["Retry-After"]))


async def connect(path):
    """Opens a WebSocket to the gateway. After a 429, waits and tries again."""
    while True:
        try:
            url = gateway.replace("http", "ws", 1) + path
            return await websockets.connect(url, subprotocols=["garage.v1", f"bearer.{token}"])
        except websockets.InvalidStatus as error:
            if error.response.status_code != 429:
                raise
            await asyncio.sleep(int(error.response.headers["Retry-After"]))


async def wait_for(socket, wanted):
    """Prints the type of each event until one of the wanted type arrives, and returns its data."""
    async for frame in socket:
        event = json.loads(frame)
        print(event["type"], flush=True)
        if event["type"] == wanted:
            return event["data"]
        if event["type"] == "MatchProposed":
            await socket.send(json.dumps({"type": "accept", "data": {"session": event["data"]["session"]}}))
        if event["type"] in ("Cancelled", "TimedOut", "MatchDeclined", "Released"):
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
    me = (await call("GET", "/v1/players/me"))["player"]
    ticket = await call("POST", "/v1/matchmaking/tickets", {"queue": "ranked", "latencies": {"eu": 20}})
    async with await connect(f"/v1/ws?since={ticket['seq']}") as socket:
        match = await wait_for(socket, "PlayerMatched")
        connect_token = (await call("POST", f"/v1/sessions/{match['session']}/connect-token"))["token"]
        results = await play(match, connect_token)
        print("place", next(result["place"] for result in results if result["player"] == me))
        print((await wait_for(socket, "Released"))["why"])


asyncio.run(main())
