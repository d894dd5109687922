-- What workers did in each minute, and what they have in hand, told with each heartbeat: one row a worker and minute, and
-- nothing on the hot path. Two hours are kept.
--
-- Workers of the previous version neither write nor read it.

CREATE TABLE cliquet.activity (
    worker    bigint NOT NULL,
    minute    timestamptz NOT NULL,
    succeeded bigint NOT NULL,
    failed    bigint NOT NULL,
    queue     text NOT NULL,
    PRIMARY KEY (worker, minute)
) WITH (fillfactor = 50);

ALTER TABLE cliquet.workers
    ADD COLUMN succeeded bigint NOT NULL DEFAULT 0,
    ADD COLUMN failed bigint NOT NULL DEFAULT 0,
    ADD COLUMN in_hand integer NOT NULL DEFAULT 0,
    ADD COLUMN running uuid[];

COMMENT ON TABLE cliquet.activity IS 'How many tasks ended in a minute, by worker. An attempt that a crash, a stop or a brake cut short is not among them.';
COMMENT ON COLUMN cliquet.activity.minute IS 'Its beginning, in the database''s time: that of the heartbeat that told it.';
COMMENT ON COLUMN cliquet.workers.succeeded IS 'Tasks that ended well since the worker began, as of seen_at.';
COMMENT ON COLUMN cliquet.workers.failed IS 'Attempts that failed since the worker began, as of seen_at.';
COMMENT ON COLUMN cliquet.workers.in_hand IS 'How many jobs the worker runs, as of seen_at.';
COMMENT ON COLUMN cliquet.workers.running IS 'Those of them that were there a second before, the oldest first, as of seen_at.';
