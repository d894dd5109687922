-- What people did to a job: each retry, cancel and skip, by whom and why. Append-only; it goes with its job.
--
-- No foreign key, as with `failures`: a key check would lock the job's row once more.

CREATE TABLE cliquet.interventions (
    id       bigint GENERATED ALWAYS AS IDENTITY,
    job_id   uuid NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    position integer,
    act      text NOT NULL,
    operator text NOT NULL,
    reason   text,
    PRIMARY KEY (job_id, id)
);

COMMENT ON TABLE cliquet.interventions IS 'What people did to a job. An act on the job''s rows and its row here are one commit; a retry changes no row of the job, and is written down when its copy is confirmed.';
COMMENT ON COLUMN cliquet.interventions.position IS 'The task that was skipped; NULL for acts on a whole job.';
COMMENT ON COLUMN cliquet.interventions.act IS 'retry, cancel or skip.';
COMMENT ON COLUMN cliquet.interventions.operator IS 'Who did it, as they called themselves: a note for colleagues, no proof.';
