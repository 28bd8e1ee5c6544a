-- Every statement that batcher runs, but for the schema. A name line starts each; the comment says what for.
-- Statements that end in a list of values are given as many rows of it as there are to write.

-- name: make_job
-- Write down whose store this is, once.
INSERT INTO job (id, namespace, base_url, created_at) VALUES (1, ?, ?, ?);

-- name: read_job
-- Whose store is this?
SELECT namespace, base_url, pid, line_count FROM job;

-- name: take_job
-- Note which process writes this store now.
UPDATE job SET pid = ?;

-- name: set_line_count
-- Note how many rows the job file has.
UPDATE job SET line_count = ?;

-- name: last_ids
-- Where ids go on: the last row, the last attempt, the last line, and how many rows have left the file.
SELECT
  (SELECT coalesce(max(id), 0) FROM rows),
  (SELECT coalesce(max(id), 0) FROM attempts),
  (SELECT coalesce(max(seq), 0) FROM rows),
  (SELECT count(*) FROM rows WHERE seq IS NULL);

-- name: rows_between
-- The rows that were on these lines at the last run, with how they ended: the walk beside the file.
SELECT rows.seq, rows.id, rows.key, outcomes.state
FROM rows LEFT JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq BETWEEN ? AND ? ORDER BY rows.seq;

-- name: index_keys
-- Make a lookup of keys for this run only: a job whose file did not change never needs it.
CREATE TEMP TABLE keys AS SELECT key, id FROM main.rows;

-- name: index_keys_order
-- The order of that lookup.
CREATE INDEX temp.keys_by_key ON keys (key);

-- name: rows_by_key
-- Find rows that were on another line, or had left the file: (?) is given as many keys as are looked up.
SELECT keys.key, keys.id, outcomes.state
FROM temp.keys LEFT JOIN outcomes ON outcomes.row = keys.id
WHERE keys.key IN (?);

-- name: detach_rows
-- These rows are no longer on these lines; they stay, with their cost, whether or not they turn up again.
UPDATE rows SET seq = NULL WHERE id IN (?);

-- name: detach_rest
-- The file ended before this line: what was on later ones is no longer in it.
UPDATE rows SET seq = NULL WHERE seq > ?;

-- name: attach_rows
-- These known rows are on these lines now, and go by these names.
WITH moved (row, line, name) AS (VALUES (?, ?, ?))
UPDATE rows SET seq = moved.line, custom_id = moved.name FROM moved WHERE rows.id = moved.row;

-- name: insert_rows
-- Rows that were not known.
INSERT INTO rows (id, seq, key, custom_id) VALUES (?, ?, ?, ?);

-- name: reopen_rows
-- These rows are to be tried again: they become pending.
DELETE FROM outcomes WHERE row IN (?);

-- name: insert_attempts
-- Claims: before anything of them is sent.
INSERT INTO attempts (id, rows, key, number, model, claimed_at, tokens, worst_cost_pico_usd)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_settlements
-- What became of claims.
INSERT INTO settlements (
  attempt, billed, sent_at, ended_at, status, error, request_id,
  prompt_tokens, cached_tokens, completion_tokens, cost_pico_usd
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_outcomes
-- How rows ended: before they count as ended.
INSERT INTO outcomes (row, state, attempt, status, request_id, body, code, message, line, finish)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: settle_orphans
-- A process died with these in flight: nobody knows what became of them.
INSERT INTO settlements (attempt, billed, ended_at, error, cost_pico_usd)
SELECT attempts.id, 'maybe', ?, 'crashed', 0
FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
WHERE settlements.attempt IS NULL;

-- name: doubted_rows
-- At-most-once: every row still pending of which an attempt may have been billed is not sent again.
SELECT DISTINCT rows.id
FROM settlements
JOIN attempts ON attempts.id = settlements.attempt
JOIN json_each(attempts.rows) AS packed
JOIN rows ON rows.id = packed.value
WHERE settlements.billed = 'maybe'
  AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.row = rows.id);

-- name: sent_since
-- What was sent, or may have been, since this time, in slots of so many seconds: the rate limits of a new
-- process begin with it. What a dead process had in flight may have been sent until it was seen dead. Tokens as
-- they were reserved, and as they were used where that is known.
WITH sent AS (
  SELECT attempts.model, attempts.tokens, coalesce(settlements.sent_at, settlements.ended_at) AS at,
    coalesce(nullif(settlements.prompt_tokens + settlements.completion_tokens, 0), attempts.tokens) AS used
  FROM attempts JOIN settlements ON settlements.attempt = attempts.id
  WHERE attempts.id > (SELECT coalesce(max(id), 0) FROM attempts) - ?
    AND (settlements.sent_at IS NOT NULL OR settlements.error = 'crashed')
)
SELECT model, max(at) AS latest, count(*), sum(tokens), sum(used)
FROM sent WHERE at >= ? GROUP BY model, CAST(at / ? AS INTEGER) ORDER BY latest;

-- name: count_rows
-- How many rows of the file ended how: their state, and the error's code or why the answer ended early.
SELECT outcomes.state, coalesce(outcomes.code, outcomes.finish), count(*)
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 2;

-- name: bill
-- Per model: what is certain, and what is in doubt, of every attempt that was sent or may have been.
SELECT
  attempts.model,
  sum(settlements.attempt IS NULL OR sent_at IS NOT NULL OR error = 'crashed') AS requests,
  sum(billed = 'yes') AS answered,
  sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
  sum(cost_pico_usd), sum(billed = 'yes' AND cost_pico_usd IS NULL),
  coalesce(sum(billed IS NULL OR billed = 'maybe'), 0),
  coalesce(sum(CASE WHEN billed IS NULL OR billed = 'maybe' THEN worst_cost_pico_usd END), 0),
  coalesce(sum((billed IS NULL OR billed = 'maybe') AND worst_cost_pico_usd IS NULL), 0)
FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
GROUP BY attempts.model ORDER BY attempts.model;

-- name: results
-- The answers, in the order of the file.
SELECT rows.key, rows.custom_id, outcomes.status, outcomes.request_id, outcomes.body
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq IS NOT NULL AND outcomes.state = 'done' ORDER BY rows.seq;

-- name: errors
-- The rows that ended without an answer, in the order of the file.
SELECT rows.key, rows.custom_id, outcomes.status, outcomes.request_id, outcomes.body,
  outcomes.code, outcomes.message, outcomes.line, outcomes.state
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq IS NOT NULL AND outcomes.state <> 'done' ORDER BY rows.seq;

-- name: attempts_log
-- Every attempt, in the order of the claims.
SELECT attempts.id, attempts.key, attempts.number, attempts.model, attempts.claimed_at,
  settlements.sent_at, settlements.ended_at, coalesce(settlements.billed, 'maybe'), settlements.status,
  settlements.error, settlements.request_id, settlements.prompt_tokens, settlements.cached_tokens,
  settlements.completion_tokens, settlements.cost_pico_usd
FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id ORDER BY attempts.id;

-- name: seen_schema
-- A scratch database: the names and bodies that this pass over the job file has met.
CREATE TABLE names (custom_id TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;

-- name: seen_schema_bodies
-- How often each bare body has been met.
CREATE TABLE bodies (digest BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;

-- name: meet_names
-- Note who uses these names first.
INSERT INTO names (custom_id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- name: who_met
-- Who used these names first?
SELECT custom_id, seq FROM names WHERE custom_id IN (?);

-- name: meet_body
-- Count one more occurrence of this body.
INSERT INTO bodies (digest, times) VALUES (?, 1)
ON CONFLICT (digest) DO UPDATE SET times = times + 1 RETURNING times;
