-- Reservations that name whom they were for, by their counter: retention forgets that with the rest
-- of a period's history.

CREATE INDEX reservations_named ON reservations (customer_id, feature_id, series, period_start_ms)
    WHERE entity_id IS NOT NULL AND state <> 'pending';
