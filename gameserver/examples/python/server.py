"""A complete game server in Python. Each player draws a card, and the higher card wins.

    server.py --config FILE        needs Python 3.11, nats-py[nkeys], websockets, PyJWT and cryptography

The step numbers are the same as in ../../CONTRACT.md.
"""

import argparse, asyncio, datetime, json, os, random, ssl, time

import jwt, nats, websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from nats.aio.client import RawCredentials
from nats.js.errors import APIError


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def tls(private_key):
    """Step 2: TLS 1.3 with a self-signed certificate of the game's key. Clients check the fingerprint of the key."""
    key = serialization.load_pem_private_key(private_key.encode(), None)
    name, day = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "garage game")]), datetime.timedelta(days=1)
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, now() - day, now() + day)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The ssl module reads keys from files only. This file exists in memory alone, so that the key is never on a disk.
    memory = os.memfd_create("certificate")
    os.write(memory, private_key.encode() + certificate)
    context.load_cert_chain(f"/proc/self/fd/{memory}")
    os.close(memory)
    return context


async def report(config, subject, body):
    """Steps 3 and 5: publishes a report, and retries until JetStream acknowledges it."""
    to = config["nats"]
    while True:
        try:
            client = await nats.connect(to["url"].split(","), user_credentials=RawCredentials(to["credentials"]),
                                        inbox_prefix=to["inbox"].encode(), allow_reconnect=False)
            try:
                await client.jetstream().publish(subject, json.dumps(body).encode(), timeout=5)
            except APIError as error:
                # Then the report is stored: an earlier acknowledgement was lost.
                if (error.err_code, error.description) != (10077, "maximum messages per subject exceeded"):
                    raise
            return await client.close()
        except Exception as error:
            print("report not acknowledged, retrying:", repr(error), flush=True)
            await asyncio.sleep(1)


def verify(config, token):
    """Step 4: returns the player of a connection token, or raises an exception if the token is not valid.

    To look the player up in your own systems, use claims["provider_sub"]: the name that your identity provider gives the
    player.
    """
    key = config["token_keys"][jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="garage-game", options={"require": ["exp"]})
    if claims["session"] != config["session"]:
        raise ValueError("the token is for another session")
    return next(loadout["player"] for loadout in config["players"] if loadout["player"] == claims["sub"])


async def play(config):
    players = [loadout["player"] for loadout in config["players"]]
    connections, complete, started = {}, asyncio.Event(), time.monotonic()

    async def admit(socket):
        try:
            player = verify(config, json.loads(await asyncio.wait_for(socket.recv(), 10))["token"])
        except Exception:
            return await socket.close(4401, "refused")
        connections[player] = socket
        if len(connections) == len(players):
            complete.set()
        await socket.wait_closed()

    host = os.environ.get("GARAGE_GAMESERVER_BIND", "0.0.0.0")
    async with websockets.serve(admit, host, 0, ssl=tls(config["private_key"])) as server:
        port = server.sockets[0].getsockname()[1]
        await report(config, config["ready"], {"tcp_port": port, "udp_port": 0})
        try:
            await asyncio.wait_for(complete.wait(), 30)
        except asyncio.TimeoutError:
            print("not every player has connected", flush=True)
        # Players that have not connected draw no card and share the last place.
        cards = {player: random.random() if player in connections else -1 for player in players}
        duration = round((time.monotonic() - started) * 1000)
        results = []
        for player in sorted(players, key=cards.get, reverse=True):
            result = {"player": player, "place": 1 + sum(card > cards[player] for card in cards.values())}
            result.update({"time_ms": duration} if player in connections else {"joined": False})
            results.append(result)
        # The team with the highest card on average wins. In a match of one team, each player counts alone.
        means = {team["name"]: sum(map(cards.get, team["players"])) / len(team["players"]) for team in config["teams"]}
        teams = [{"team": team, "place": 1 + sum(other > mean for other in means.values())} for team, mean in means.items()]
        await report(config, config["finished"], {"results": results, "teams": teams if len(teams) > 1 else []})
        websockets.broadcast(connections.values(), json.dumps({"type": "result", "results": results}))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    with open(arguments.parse_known_args()[0].config) as file:
        config = json.load(file)
    # Step 6: exit by `ends_at`, whatever happens.
    left = datetime.datetime.fromisoformat(config["ends_at"]) - now()
    asyncio.run(asyncio.wait_for(play(config), left.total_seconds()))
