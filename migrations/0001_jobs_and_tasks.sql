-- Jobs and their tasks: the single source of truth about what has been done.
--
-- Updates on the hot path (a task begins, ends; a job ends well) touch no indexed column and find room on their page, so
-- they stay heap-only. That is why no index mentions `status`, `holder` or `finished_at`, not even in a predicate.

CREATE SCHEMA IF NOT EXISTS cliquet;

CREATE TYPE cliquet.job_status AS ENUM ('PENDING', 'PROCESSING', 'RETRYING', 'SUCCESS', 'FAILED', 'CANCELLED');
CREATE TYPE cliquet.task_status AS ENUM ('PENDING', 'PROCESSING', 'SUCCESS', 'FAILED');

CREATE TABLE cliquet.jobs (
    id              uuid PRIMARY KEY,
    epoch           bigint NOT NULL,
    generation      bigint NOT NULL,
    sent            bigint NOT NULL,
    holder          bigint,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,
    finished_at     timestamptz,
    next_attempt_at timestamptz,
    attempts        integer NOT NULL DEFAULT 0,
    total           integer NOT NULL CHECK (total > 0),
    status          cliquet.job_status NOT NULL,
    queue           text NOT NULL,
    kind            text NOT NULL,
    payload         json NOT NULL,
    fingerprint     bytea CHECK (octet_length(fingerprint) = 32),
    error           text,
    CONSTRAINT held_exactly_while_processing CHECK ((status = 'PROCESSING') = (holder IS NOT NULL)),
    CONSTRAINT due_exactly_while_waiting CHECK ((status IN ('PENDING', 'RETRYING')) = (next_attempt_at IS NOT NULL)),
    CONSTRAINT finished_exactly_when_over CHECK ((status IN ('SUCCESS', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CONSTRAINT no_error_in_success CHECK (status <> 'SUCCESS' OR error IS NULL),
    CONSTRAINT failed_says_why CHECK (status NOT IN ('FAILED', 'RETRYING') OR error IS NOT NULL)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05);

COMMENT ON TABLE cliquet.jobs IS 'One row a job. A job is an ordered list of tasks that arrived as one RabbitMQ message.';
COMMENT ON COLUMN cliquet.jobs.id IS 'Chosen by the publisher; the same id is the same job.';
COMMENT ON COLUMN cliquet.jobs.epoch IS 'Grows with each claim (and with a cancel). Every write names it, so a former holder''s write changes nothing.';
COMMENT ON COLUMN cliquet.jobs.generation IS 'Grows each time the job''s message is sent again. A copy of an older generation is stale.';
COMMENT ON COLUMN cliquet.jobs.sent IS 'The highest generation whose copy the broker is known to have confirmed; written lazily.';
COMMENT ON COLUMN cliquet.jobs.holder IS 'The worker that runs the job now (cliquet.workers.id).';
COMMENT ON COLUMN cliquet.jobs.next_attempt_at IS 'When a waiting job is due.';
COMMENT ON COLUMN cliquet.jobs.attempts IS 'How often a worker has claimed the job.';
COMMENT ON COLUMN cliquet.jobs.total IS 'How many tasks the job has.';
COMMENT ON COLUMN cliquet.jobs.payload IS 'The message''s payload to the letter (json, not jsonb, so that the fingerprint still fits).';
COMMENT ON COLUMN cliquet.jobs.fingerprint IS 'SHA-256 of what the message asks for. Another message of the same id must agree in it. NULL for a job that was enqueued in SQL.';
COMMENT ON COLUMN cliquet.jobs.error IS 'Why the job waits, was given up or was cancelled.';

-- What is due: small, since a job leaves it when it is claimed, and a job that never failed was never in it.
CREATE INDEX jobs_due ON cliquet.jobs (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
-- What is owed to the broker: a copy that is not known to be confirmed.
CREATE INDEX jobs_owed ON cliquet.jobs (id) WHERE sent < generation;
-- Newest first, for people.
CREATE INDEX jobs_by_age ON cliquet.jobs (created_at, id);

-- No foreign key: tasks are inserted in the same statement as their job and deleted with it, and a key check for every
-- task would lock the job's row once more on the hottest path.
CREATE TABLE cliquet.tasks (
    job_id       uuid NOT NULL,
    epoch        bigint NOT NULL DEFAULT 0,
    started_at   timestamptz,
    finished_at  timestamptz,
    timeout_ms   bigint CHECK (timeout_ms > 0),
    position     integer NOT NULL CHECK (position > 0),
    attempt      integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes      integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    max_attempts integer CHECK (max_attempts > 0),
    status       cliquet.task_status NOT NULL DEFAULT 'PENDING',
    handler      text NOT NULL,
    label        text NOT NULL,
    input        json,
    result       json,
    error        text,
    PRIMARY KEY (job_id, position),
    CONSTRAINT finished_exactly_when_ended CHECK ((status IN ('SUCCESS', 'FAILED')) = (finished_at IS NOT NULL)),
    CONSTRAINT error_exactly_when_failed CHECK ((status = 'FAILED') = (error IS NOT NULL)),
    CONSTRAINT result_only_of_success CHECK (result IS NULL OR status = 'SUCCESS'),
    CONSTRAINT begun_has_an_attempt CHECK (status = 'PENDING' OR (attempt > 0 AND started_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05);

COMMENT ON TABLE cliquet.tasks IS 'The steps of a job, in the order of position. SUCCESS is never undone.';
COMMENT ON COLUMN cliquet.tasks.position IS '1, 2, 3 … A task starts only when every task before it is SUCCESS.';
COMMENT ON COLUMN cliquet.tasks.epoch IS 'The job''s epoch when this task was begun: the fence that a former holder''s write does not pass.';
COMMENT ON COLUMN cliquet.tasks.attempt IS 'Number of the present or last attempt, from 1. An attempt that a crash or a stop cut short is not counted.';
COMMENT ON COLUMN cliquet.tasks.crashes IS 'How often a worker died while it ran this task.';
COMMENT ON COLUMN cliquet.tasks.timeout_ms IS 'The message''s own time limit for one attempt, in milliseconds.';
COMMENT ON COLUMN cliquet.tasks.input IS 'What the message gives this task; NULL stands for null.';
COMMENT ON COLUMN cliquet.tasks.result IS 'What the handler answered; NULL stands for null.';
