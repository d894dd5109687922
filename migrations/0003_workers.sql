-- One row a worker process, however many jobs it holds: its heartbeat and the advisory lock it keeps for as long as it lives.

CREATE TABLE cliquet.workers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lock_key   bigint GENERATED ALWAYS AS ((1668049265::bigint << 32) + id) STORED,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    locked_at  timestamptz,
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    stopped_at timestamptz,
    cleared_at timestamptz,
    patience   interval NOT NULL,
    pid        integer NOT NULL,
    name       text NOT NULL,
    host       text NOT NULL,
    version    text NOT NULL,
    queue      text NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE cliquet.workers IS 'Worker processes. One is dead when it was stopped, or its heartbeat is older than its patience, or its lock is free and the broker delivered its job again.';
COMMENT ON COLUMN cliquet.workers.lock_key IS 'The session advisory lock that the process holds: "cliq" in the high 32 bits, the id in the low.';
COMMENT ON COLUMN cliquet.workers.locked_at IS 'When the present lock was taken. A lock freed by a restart of Postgres is no witness of a death.';
COMMENT ON COLUMN cliquet.workers.seen_at IS 'The last heartbeat, in the database''s time.';
COMMENT ON COLUMN cliquet.workers.cleared_at IS 'When the worker was dead and held no job. A heartbeat after it makes it void.';
COMMENT ON COLUMN cliquet.workers.patience IS 'A heartbeat older than this is stale.';
