-- Upgrades that take money: what is claimed here before Stripe is asked, so that calls which race or
-- are repeated ask for the same thing.

-- Who is about to get a Stripe customer, and the idempotency key with which it is made.
CREATE TABLE stripe_customer_claims (
    customer_id TEXT PRIMARY KEY,
    idempotency_key TEXT NOT NULL,
    claimed_at_ms BIGINT NOT NULL
);

-- The one Checkout session of a customer that may be open. A session whose id was not noted here was
-- shown to nobody.
CREATE TABLE checkouts (
    customer_id TEXT PRIMARY KEY,
    -- Also the idempotency key with which the session is made.
    checkout_id TEXT NOT NULL,
    plan_id TEXT NOT NULL,
    price_id TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    -- Where the customer goes afterwards.
    return_url TEXT NOT NULL,
    claimed_at_ms BIGINT NOT NULL,
    -- When the session ends by itself.
    expires_at_ms BIGINT NOT NULL,
    session_id TEXT
);
