-- The way to the jobs that people look for: what was given up, what waits after a failure, what waits for a worker. Among
-- millions that ended well they are few, and without it each list of them would read all the others.
--
-- It does not mention `status`, which the hot path updates. A job has an error exactly while it is FAILED, RETRYING or
-- CANCELLED, and is due exactly while it is PENDING or RETRYING; a job that never fails has neither, from its admission to its
-- end, so it is never entered and its updates stay heap-only. One index for three lists: every insert of a job looks at each.
--
-- It is made by a read of the whole table, and workers' writes wait until that ends: some seconds for a million jobs. Where
-- there are far more, make it before with CREATE INDEX CONCURRENTLY, under the same name: then this makes nothing. What such
-- a command leaves behind when it fails would be taken for an index and is used by nobody, so that this refuses it.

CREATE INDEX IF NOT EXISTS jobs_looked_for ON cliquet.jobs ((num_nonnulls(error)), (num_nonnulls(next_attempt_at)), created_at, id)
 WHERE num_nonnulls(error, next_attempt_at) > 0;

DO $$
DECLARE
    broken text := (SELECT string_agg('cliquet.' || relname, ', ') FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                     WHERE indrelid = 'cliquet.jobs'::regclass AND NOT (indisvalid AND indisready));
BEGIN
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'CREATE INDEX CONCURRENTLY has left an invalid index behind, or is still making it: % (if it has failed: DROP INDEX of that name, and run `cliquet migrate` again)', broken;
    END IF;
END
$$;
