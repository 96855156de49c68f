// An OpenID provider for the gateway's tests: the package oidc-provider, whose keys the tests change while it runs.
//
//   node provider.mjs PACKAGES        PACKAGES is the folder in which deploy/local/install.sh installs the package
//
// It prints its issuer, and ends when its standard input ends. Besides the endpoints of OpenID Connect it has:
//
//   POST /test/keys   [{"alg": "RS256", "kid": "a"}, …]       makes new keys; a known kid keeps its key
//   POST /test/token  {"alg", "sub", "audience", "claims"}    issues an access token for a player (a JWT)
import { createRequire } from "node:module";
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const packages = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { default: Provider } = await import(pathToFileURL(packages.resolve("oidc-provider")));

const RESOURCE = "https://game.example/api";
const PAIRS = {
  RS256: () => generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: () => generateKeyPairSync("ec", { namedCurve: "P-256" }),
  EdDSA: () => generateKeyPairSync("ed25519"),
};

const known = new Map();
let issuer, provider, audience, alg, extra;

function make(keys) {
  for (const { kid, alg } of keys) {
    if (!known.has(kid)) {
      known.set(kid, { ...PAIRS[alg]().privateKey.export({ format: "jwk" }), kid, alg, use: "sig" });
    }
  }
  const resource = () => ({ scope: "matchmaking:groups", audience, accessTokenFormat: "jwt", jwt: { sign: { alg } } });
  provider = new Provider(issuer, {
    jwks: { keys: keys.map(({ kid }) => known.get(kid)) },
    clients: [{
      client_id: "backend", client_secret: "backend-secret", grant_types: ["client_credentials"], redirect_uris: [],
      response_types: [], scope: "matchmaking:groups",
    }],
    scopes: ["openid", "matchmaking:groups"],
    enabledJWA: { idTokenSigningAlgValues: ["RS256", "ES256", "EdDSA"] },
    extraTokenClaims: () => extra,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true, defaultResource: () => RESOURCE, getResourceServerInfo: resource, useGrantedResource: () => true,
      },
    },
  });
  provider.resource = resource;
  alg = keys[0].alg;
  audience = RESOURCE;
}

async function token(asked) {
  [alg, audience, extra] = [asked.alg ?? alg, asked.audience ?? RESOURCE, asked.claims];
  const client = await provider.Client.find("backend");
  const access = new provider.AccessToken({ accountId: asked.sub, client, grantId: "test", gty: "test" });
  access.resourceServer = new provider.ResourceServer(RESOURCE, provider.resource());
  return access.save();
}

const server = createServer(async (request, response) => {
  if (!request.url.startsWith("/test/")) return provider.callback()(request, response);
  let body = "";
  for await (const chunk of request) body += chunk;
  try {
    const asked = JSON.parse(body);
    response.end(request.url === "/test/keys" ? String(make(asked)) : await token(asked));
  } catch (error) {
    response.writeHead(500).end(error.stack);
  }
});
server.listen(0, "127.0.0.1", () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  make([{ alg: "RS256", kid: "first" }]);
  console.log(issuer);
});
process.stdin.resume().on("end", () => process.exit());
