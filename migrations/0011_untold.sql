-- A plans file that changed limits: up to which customer, in order of id, those who are past a threshold
-- by that have been told. NULL when nobody is left.
ALTER TABLE plan_versions ADD COLUMN told_through TEXT;
