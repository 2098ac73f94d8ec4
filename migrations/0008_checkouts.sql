-- Checkout sessions that have outlived what they were made for: the customer was deleted or tied to
-- another Stripe customer, or has a subscription by now. Each is closed at Stripe as soon as can be.
CREATE TABLE checkouts_to_close (
    session_id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL
);
