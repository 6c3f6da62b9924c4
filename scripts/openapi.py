"""Validates OpenAPI 3.1 documents, for openapi.sh.

openapi.py URL..                the URLs of servers; each has its document at openapi.json

openapi-spec-validator holds each document against the schema of OpenAPI 3.1 with its dialect of JSON Schema. What that leaves open is
checked here: references lead somewhere and nothing is left over, path parameters are declared, operations have ids of their own, security
requirements name schemes, servers are relative, and examples and defaults have the form of their schemas.
"""

import json
import sys
import urllib.request

import jsonschema
from jsonschema.validators import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def walk(value, path=()):
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, (*path, key))


def pointed(document, reference):
    at = document
    for part in reference.removeprefix("#/").split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        at = at[int(part)] if isinstance(at, list) else at[part]
    return at


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield f"{method.upper()} {path}", path, operation


def resolved(document, value):
    return pointed(document, value["$ref"]) if "$ref" in value else value


def wrong(document):
    """What the schema of OpenAPI does not say."""
    references = [(path, value["$ref"]) for path, value in walk(document) if isinstance(value, dict) and isinstance(value.get("$ref"), str)]
    for path, reference in references:
        try:
            pointed(document, reference)
        except (KeyError, IndexError, ValueError):
            yield f"{path}: {reference} leads nowhere"

    ids = [operation.get("operationId") for _, _, operation in operations(document)]
    if len(ids) != len(set(ids)) or None in ids:
        yield f"operation ids are missing or twice: {sorted(map(str, ids))}"
    tags = {tag["name"] for tag in document["tags"]}
    schemes = document["components"].get("securitySchemes", {})
    for name, path, operation in operations(document):
        declared = {one["name"] for one in (resolved(document, one) for one in operation["parameters"]) if one["in"] == "path"}
        expected = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        if declared != expected:
            yield f"{name}: path parameters are {declared}"
        if operation["tags"][0] not in tags:
            yield f"{name}: its first tag is not described"
        if not (operation.get("summary") or "x-octollm-contract" in operation):
            yield f"{name}: it has no summary"
        needed = {scheme for requirement in operation.get("security", []) for scheme in requirement}
        if needed - set(schemes) or bool(needed) != ("401" in operation["responses"] and bool(schemes)):
            yield f"{name}: its security is {operation.get('security')}"
        for status, answer in operation["responses"].items():
            content = resolved(document, answer).get("content", {})
            if (status == "default" or (status >= "400" and (path, status) != ("/ready", "503"))) and set(content) != {"application/problem+json"}:
                yield f"{name}: {status} is {set(content)}"
            if not answer.get("description") and "$ref" not in answer:
                yield f"{name}: {status} has no description"
    for server in document["servers"]:
        if "://" in server["url"] or server["url"].startswith("/"):
            yield f"the server {server['url']} is not relative to the document"

    # Of the components that a document need not use, chunks alone are left over.
    used = {reference for _, reference in references}
    for name in document["components"]["schemas"]:
        if f"#/components/schemas/{name}" not in used and not name.endswith(".chunk"):
            yield f"the schema {name} is not used"

    registry = Registry().with_resource("urn:document", Resource(document, DRAFT202012))
    for path, schema in walk(document):
        is_schema = isinstance(schema, dict) and ("schema" in path[-1:] or path[:2] == ("components", "schemas") and len(path) >= 3)
        if not is_schema or "properties" in path[-1:] or not set(schema) & {"examples", "default"}:
            continue
        here = "urn:document#/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in path)
        validator = Draft202012Validator({"$ref": here}, registry=registry)
        for key in ("examples", "default"):
            known = schema.get(key, []) if key == "examples" else [schema[key]] if key in schema else []
            for value in known if isinstance(known, list) else []:
                for error in validator.iter_errors(value):
                    yield f"{path}: the {key} {value!r}: {error.message}"
    for name, schema in document["components"]["schemas"].items():
        try:
            Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            yield f"the schema {name}: {error.message}"


failed = False
for url in sys.argv[1:]:
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    found = [f"{list(error.absolute_path)}: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    found += wrong(document)
    for words in found:
        print(f"{url}: {words[:600]}", file=sys.stderr)
    failed |= bool(found)
    count = sum(1 for _ in operations(document))
    print(f"{url}/openapi.json: {count} operations, {len(document['components']['schemas'])} schemas")
sys.exit(failed)
