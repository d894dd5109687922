-- Ways to the jobs that people look for: what was given up, what waits after a failure, what waits for a worker. Among
-- millions that ended well they are few, and without these each list of them would read all the others.
--
-- No index mentions `status`, which the hot path updates. A job has an error exactly while it is FAILED, RETRYING or
-- CANCELLED, and is due exactly while it is PENDING or RETRYING; a job that never fails has neither, from its admission to its
-- end, so it is in none of these and its updates stay heap-only.
--
-- Each is made in a second for a million jobs, in which workers' writes wait. Where there are far more, make them before with
-- CREATE INDEX CONCURRENTLY, under the same names: then this does nothing.

CREATE INDEX IF NOT EXISTS jobs_given_up ON cliquet.jobs (created_at, id) WHERE error IS NOT NULL AND next_attempt_at IS NULL;
CREATE INDEX IF NOT EXISTS jobs_retrying ON cliquet.jobs (created_at, id) WHERE error IS NOT NULL AND next_attempt_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_pending ON cliquet.jobs (created_at, id) WHERE error IS NULL AND next_attempt_at IS NOT NULL;
