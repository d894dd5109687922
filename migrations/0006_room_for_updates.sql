-- A task's row is updated twice within milliseconds. On a page that is a third full there is room for both updates of
-- all its rows, so they stay heap-only even while something (an ANALYZE, a long read) keeps the former versions from being
-- pruned. Over ten minutes under load it was 90 % with half-full pages.
--
-- No statement of the hot path depends on statistics, so both tables are analyzed less often, for people's reads.

ALTER TABLE cliquet.jobs SET (autovacuum_analyze_scale_factor = 0.5);
ALTER TABLE cliquet.tasks SET (fillfactor = 35, autovacuum_analyze_scale_factor = 0.5);
