-- Which handlers a worker has braked, beside its heartbeat: one row a worker, and nothing on the hot path.
--
-- Workers of the previous version neither write nor read it.

ALTER TABLE cliquet.workers ADD COLUMN brakes jsonb;

COMMENT ON COLUMN cliquet.workers.brakes IS 'The handlers that this worker has braked after many failures in a row, as of seen_at; NULL when there is none. Spans are in milliseconds.';
