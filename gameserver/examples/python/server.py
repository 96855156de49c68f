"""A game server that is not Garage's: who draws the higher card wins. It honours ../../CONTRACT.md and nothing else.

    server.py --config FILE        needs nats-py[nkeys], websockets, PyJWT and cryptography
"""

import argparse, asyncio, datetime, json, os, random, ssl

import jwt, nats, websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from nats.aio.client import RawCredentials


def tls(private_key):
    """Serves TLS 1.3 with a certificate of the game's own key, which is what clients pin."""
    key = serialization.load_pem_private_key(private_key.encode(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "garage game")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    memory = os.memfd_create("certificate")  # ssl wants a file, and the key must not be in one
    os.write(memory, private_key.encode() + certificate)
    context.load_cert_chain(f"/proc/self/fd/{memory}")
    os.close(memory)
    return context


async def report(config, subject, body):
    """Reports until it is acknowledged."""
    to = config["nats"]
    while True:
        try:
            client = await nats.connect(to["url"].split(","), user_credentials=RawCredentials(to["credentials"]),
                                        inbox_prefix=to["inbox"].encode(), allow_reconnect=False)
            await client.jetstream().publish(subject, json.dumps(body).encode(), timeout=5)
            return await client.close()
        except Exception as error:  # whatever it is, the report must arrive
            print("not reported yet:", repr(error), flush=True)
            await asyncio.sleep(1)


async def play(config):
    players = [loadout["player"] for loadout in config["players"]]
    seats, complete = {}, asyncio.Event()

    async def admit(socket):
        try:
            token = json.loads(await asyncio.wait_for(socket.recv(), 10))["token"]
            key = config["token_keys"][jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="garage-game")
            admitted = claims["session"] == config["session"] and claims["sub"] in players
        except Exception:
            admitted = False
        if not admitted:
            return await socket.close(4401, "refused")
        seats[claims["sub"]] = socket
        if len(seats) == len(players):
            complete.set()
        await socket.wait_closed()

    host = os.environ.get("GARAGE_GAMESERVER_BIND", "0.0.0.0")
    async with websockets.serve(admit, host, 0, ssl=tls(config["private_key"])) as server:
        port = server.sockets[0].getsockname()[1]
        await report(config, config["ready"], {"tcp_port": port, "udp_port": 0})
        try:
            await asyncio.wait_for(complete.wait(), 30)
        except asyncio.TimeoutError:
            pass  # who is not there draws nothing
        cards = {player: random.random() if player in seats else -1 for player in players}
        order = sorted(players, key=cards.get, reverse=True)
        results = [{"player": player, "place": place} for place, player in enumerate(order, 1)]
        await report(config, config["finished"], {"results": results})
        for socket in seats.values():
            await socket.send(json.dumps({"type": "result", "results": results}))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    with open(arguments.parse_args().config) as file:
        asyncio.run(play(json.load(file)))
