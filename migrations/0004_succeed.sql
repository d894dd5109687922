-- How a handler's own transaction ends: its task is SUCCESS, and what comes next begins.
--
-- A function, because it runs in the handler's session, whose settings are the handler's: its statements are planned under
-- settings of their own. While the tables are small, or were vacuumed while they were, the planner would read them whole,
-- and keep such a plan while they grow.

CREATE FUNCTION cliquet.succeed(job_id uuid, "position" integer, epoch bigint, attempt integer, result json, next text)
RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    written integer := 0;
    expected integer := 2;
BEGIN
    IF succeed.next = 'task' THEN
        -- Both tasks in one statement. That both were written tells that the first was.
        UPDATE cliquet.tasks task
           SET status = CASE WHEN task.position = succeed.position THEN 'SUCCESS' ELSE 'PROCESSING' END::cliquet.task_status,
               finished_at = CASE WHEN task.position = succeed.position THEN clock_timestamp() END,
               result = CASE WHEN task.position = succeed.position THEN succeed.result END,
               epoch = succeed.epoch,
               attempt = CASE WHEN task.position = succeed.position THEN task.attempt ELSE task.attempt + 1 END,
               started_at = CASE WHEN task.position = succeed.position THEN task.started_at ELSE clock_timestamp() END
         WHERE task.job_id = succeed.job_id AND task.position BETWEEN succeed.position AND succeed.position + 1
           AND CASE WHEN task.position = succeed.position
                    THEN task.status = 'PROCESSING' AND task.epoch = succeed.epoch AND task.attempt = succeed.attempt
                    ELSE task.status = 'PENDING' END;
        GET DIAGNOSTICS written = ROW_COUNT;
    ELSE
        UPDATE cliquet.jobs job
           SET status = CASE succeed.next WHEN 'finish' THEN 'SUCCESS' ELSE 'PENDING' END::cliquet.job_status, holder = NULL,
               finished_at = CASE succeed.next WHEN 'finish' THEN clock_timestamp() END,
               next_attempt_at = CASE succeed.next WHEN 'hand_back' THEN clock_timestamp() END
         WHERE job.id = succeed.job_id AND job.epoch = succeed.epoch AND job.status = 'PROCESSING'
           AND (succeed.next <> 'finish' OR succeed.position = job.total);
        IF FOUND THEN
            UPDATE cliquet.tasks task SET status = 'SUCCESS', finished_at = clock_timestamp(), result = succeed.result
             WHERE task.job_id = succeed.job_id AND task.position = succeed.position AND task.status = 'PROCESSING'
               AND task.epoch = succeed.epoch AND task.attempt = succeed.attempt;
            GET DIAGNOSTICS written = ROW_COUNT;
        END IF;
        expected := 1;
    END IF;
    IF written <> expected THEN
        RAISE EXCEPTION 'the job % is no longer held at the epoch %', succeed.job_id, succeed.epoch USING ERRCODE = 'CQ001';
    END IF;
END
$$;

COMMENT ON FUNCTION cliquet.succeed IS 'Marks a task SUCCESS in the caller''s transaction. It fails with CQ001 when somebody else owns the job: nothing of that transaction may be kept.';
