"""Makes what schemathesis invents meet what is there, so that it comes further than to a 404.

tests/it/openapi.rs creates it all and names it in the environment."""

import os

import schemathesis

CUSTOMERS = os.environ["CUSTOMERS"].split()
RESERVATIONS = os.environ["RESERVATIONS"].split()
TOKENS = os.environ["TOKENS"].split()
FEATURES = ["ai_runs"]


def known(value, names):
    """One of the names in place of three in four valid ids; what is wrong stays as it is."""
    valid = isinstance(value, str) and 0 < len(value) <= 64 and value.isascii() and value.isprintable()
    # Not at random: the same run is to be had again.
    draw = sum(map(ord, value)) if valid else 3
    return value if draw % 4 == 3 else names[draw % len(names)]


def with_known_ids(fields, names_of):
    if isinstance(fields, dict):
        for field in fields.keys() & names_of.keys():
            fields[field] = known(fields[field], names_of[field])
    return fields


@schemathesis.hook
def map_body(context, body):
    return with_known_ids(body, {"customer_id": CUSTOMERS, "feature_id": FEATURES, "token": TOKENS})


@schemathesis.hook
def map_query(context, query):
    return with_known_ids(query, {"customer_id": CUSTOMERS, "feature_id": FEATURES, "token": TOKENS})


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    ids = RESERVATIONS if "/reservations/" in context.operation.path else CUSTOMERS
    return with_known_ids(path_parameters, {"feature_id": FEATURES, "id": ids})
