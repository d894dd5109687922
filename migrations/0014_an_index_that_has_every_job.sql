-- `jobs_newest` has the jobs with `total > 0`. That is true of each job that came as a message, but one that somebody wrote in SQL
-- may say 0: it is given up with the reason, and was then in no list that is by age, and never deleted. This index has every
-- job, in words that Postgres cannot prove of a write that does not say them (see the migration before this one), but can of
-- a list of the previous binary.
--
-- Workers' writes wait until it is made; for a table of many millions see migration 12.

CREATE INDEX IF NOT EXISTS jobs_of_any_age ON cliquet.jobs (created_at, id) WHERE total >= '-2147483648'::integer;

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
