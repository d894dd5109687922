-- For a write that names its jobs there is one way to them: the primary key. Where Postgres believes that the table is empty
-- (it was, when it was vacuumed; or its rows were deleted, and an index was just made), any index with `id` in it seems as good,
-- and it took `jobs_by_age`, which then is looked through from its beginning to its end for every job: writes cost three times
-- as much until the next autovacuum. No plan can use an index whose condition it cannot prove. This one has all jobs, and
-- is for those who say `total > 0`.
--
-- Workers' writes wait until the index is made; see the migration before this one for a table of many millions. Lists of the
-- previous binary sort the table meanwhile.

CREATE INDEX IF NOT EXISTS jobs_newest ON cliquet.jobs (created_at, id) WHERE total > 0;
DROP INDEX IF EXISTS cliquet.jobs_by_age;
