// Issues and verifies tokens with jose, for interop_tokens.sh.
//
// issue DIR ALG                   prints a token, and writes the public JWK set to DIR/ALG.jose.jwks
// verify DIR ALG < TOKEN          verifies it with the set DIR/ALG.ours.jwks, or with the secret
import assert from "node:assert";
import { createPublicKey } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Modules are found beside this file only, and jose is installed elsewhere.
const [, , jose_at, command, folder, alg] = process.argv;
const found = createRequire(pathToFileURL(`${jose_at}/`)).resolve("jose");
const jose = await import(pathToFileURL(found));

const read = (name) => readFileSync(`${folder}/${name}`, "utf8");
const secret = () => jose.importJWK(JSON.parse(read("HS256.jwk")), "HS256");

async function issue() {
  let key;
  if (alg === "HS256") {
    key = await secret();
  } else {
    const pem = read(`${alg}.pem`);
    key = await jose.importPKCS8(pem, alg);
    const jwk = await jose.exportJWK(createPublicKey(pem));
    writeFileSync(`${folder}/${alg}.jose.jwks`, JSON.stringify({ keys: [{ ...jwk, alg, kid: "k1", use: "sig" }] }));
  }
  const token = new jose.SignJWT({ scope: "code:validate" }).setProtectedHeader({ alg, typ: "at+jwt", kid: "k1" });
  token.setIssuer("brain").setSubject("ali").setAudience("judge").setJti("t1").setIssuedAt().setExpirationTime("5m");
  console.log(await token.sign(key));
}

async function verify() {
  const token = readFileSync(0, "utf8").trim();
  const key = alg === "HS256" ? await secret() : jose.createLocalJWKSet(JSON.parse(read(`${alg}.ours.jwks`)));
  const rules = { algorithms: [alg], audience: "judge", issuer: "brain", typ: "at+jwt" };
  const { payload } = await jose.jwtVerify(token, key, { ...rules, requiredClaims: ["sub", "iat", "exp", "jti"] });
  assert.deepEqual([payload.sub, payload.scope], ["ali", "code:validate"]);
}

await { issue, verify }[command]();
