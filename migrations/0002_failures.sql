-- Every failed attempt and every crash, so that people see more than the last one. Append-only.

CREATE TABLE cliquet.failures (
    job_id     uuid NOT NULL,
    epoch      bigint NOT NULL,
    started_at timestamptz,
    failed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    position   integer NOT NULL,
    attempt    integer NOT NULL,
    worker     text NOT NULL,
    error      text NOT NULL,
    PRIMARY KEY (job_id, epoch)
);

COMMENT ON TABLE cliquet.failures IS 'One row for each attempt that failed or crashed; a claim (an epoch) ends in at most one.';
COMMENT ON COLUMN cliquet.failures.worker IS 'The name of the worker that ran the attempt.';
