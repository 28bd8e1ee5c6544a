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
  prompt_tokens, cached_tokens, completion_tokens, cost_pico_usd, replayed
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

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
-- Every row without an answer of which an attempt may have been billed: at-most-once, it is not sent again.
SELECT DISTINCT rows.id
FROM settlements
JOIN attempts ON attempts.id = settlements.attempt
JOIN json_each(attempts.rows) AS packed
JOIN rows ON rows.id = packed.value
WHERE settlements.billed = 'maybe' AND attempts.id NOT IN (SELECT attempt FROM told_again)
  AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.row = rows.id AND outcomes.state = 'done');

-- name: spent_keys
-- The rows of which a key has brought a failure again, and how many keys of theirs have: they need another.
SELECT packed.value, count(DISTINCT attempts.key)
FROM settlements
JOIN attempts ON attempts.id = settlements.attempt
JOIN json_each(attempts.rows) AS packed
WHERE settlements.replayed = 1 AND settlements.error IS NOT NULL GROUP BY packed.value;

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

-- name: see_version_2
-- Let a reader see a store of version 2, in which nothing was marked, as one of this version.
CREATE TEMP VIEW settlements AS SELECT *, 0 AS replayed FROM main.settlements;

-- name: see_told_again
-- The view that such a store lacks.
CREATE TEMP VIEW told_again AS SELECT NULL AS attempt WHERE FALSE;

-- name: count_rows
-- How many rows of the file ended how: their state, and the error's code or why the answer ended early.
SELECT outcomes.state, coalesce(outcomes.code, outcomes.finish), count(*)
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 2;

-- name: bill
-- Per model: what is certain, and what is in doubt, of every attempt that was sent or may have been. What was in
-- doubt and came again adds nothing more.
WITH marked AS (
  SELECT attempts.model, attempts.worst_cost_pico_usd, settlements.*,
    (billed IS NULL OR billed = 'maybe') AND attempts.id NOT IN (SELECT attempt FROM told_again) AS doubt
  FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
)
SELECT
  model,
  sum(attempt IS NULL OR sent_at IS NOT NULL OR error = 'crashed') AS requests,
  sum(billed = 'yes') AS answered,
  sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
  sum(cost_pico_usd), sum(billed = 'yes' AND cost_pico_usd IS NULL),
  sum(doubt),
  coalesce(sum(CASE WHEN doubt THEN worst_cost_pico_usd END), 0),
  sum(doubt AND worst_cost_pico_usd IS NULL)
FROM marked GROUP BY model ORDER BY model;

-- name: past_key_ttl
-- Attempts in doubt that their key covers no longer: sent again, or not yet, after this many seconds.
WITH doubts AS MATERIALIZED (
  SELECT attempts.id, attempts.key, coalesce(settlements.sent_at, attempts.claimed_at) AS at
  FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
  WHERE coalesce(settlements.billed, 'maybe') = 'maybe' AND attempts.id NOT IN (SELECT attempt FROM told_again)
), tries AS MATERIALIZED (
  SELECT attempts.id, attempts.key, attempts.claimed_at FROM attempts
  WHERE attempts.key IN (SELECT key FROM doubts)
)
SELECT count(*) FROM doubts
WHERE coalesce(
  (SELECT min(claimed_at) FROM tries WHERE tries.key = doubts.key AND tries.id > doubts.id), ?
) > at + ?;

-- name: results
-- The answers on these lines, in the order of the file.
SELECT rows.key, rows.custom_id, outcomes.status, outcomes.request_id, outcomes.body
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq BETWEEN ? AND ? AND outcomes.state = 'done' ORDER BY rows.seq;

-- name: errors
-- The rows on these lines that ended without an answer, in the order of the file.
SELECT rows.key, rows.custom_id, outcomes.status, outcomes.request_id, outcomes.body,
  outcomes.code, outcomes.message, outcomes.line, outcomes.state
FROM rows JOIN outcomes ON outcomes.row = rows.id
WHERE rows.seq BETWEEN ? AND ? AND outcomes.state <> 'done' ORDER BY rows.seq;

-- name: attempts_log
-- The attempts with these numbers, in the order of the claims, with the names of its rows.
SELECT attempts.id, attempts.key,
  (SELECT json_group_array(rows.custom_id) FROM json_each(attempts.rows) JOIN rows ON rows.id = value),
  attempts.number, attempts.model, attempts.claimed_at, settlements.sent_at, settlements.ended_at,
  CASE
    WHEN coalesce(billed, 'maybe') <> 'maybe' THEN billed
    WHEN attempts.id IN (SELECT attempt FROM told_again) THEN 'replayed'
    ELSE 'maybe'
  END,
  settlements.status, settlements.error, settlements.request_id, settlements.prompt_tokens,
  settlements.cached_tokens, settlements.completion_tokens, settlements.cost_pico_usd
FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
WHERE attempts.id BETWEEN ? AND ? ORDER BY attempts.id;

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

-- name: orphaned_rows
-- The rows that `settle_orphans` would leave in doubt: to read what it reads, before anything is written.
SELECT packed.value, outcomes.row
FROM attempts LEFT JOIN settlements ON settlements.attempt = attempts.id
JOIN json_each(attempts.rows) AS packed
JOIN rows ON rows.id = packed.value LEFT JOIN outcomes ON outcomes.row = rows.id
WHERE settlements.attempt IS NULL;

-- name: last_line
-- The last line of the file that a row is on: how far its results and errors go.
SELECT coalesce(max(seq), 0) FROM rows;

-- name: last_attempt
-- The newest attempt: how far the log of them goes.
SELECT coalesce(max(id), 0) FROM attempts;

-- name: check_pages
-- Whether the file is whole, as SQLite sees it: `ok`, or what is not.
PRAGMA integrity_check(20);

-- name: check_table
-- Whether a table's part of it is.
SELECT integrity_check FROM pragma_integrity_check(?);

-- name: check_references
-- Rows of a table that refer to what there is not: the table, the row, what it refers to.
PRAGMA foreign_key_check;

-- name: check_answers
-- Rows that count as done, but not by an attempt that was answered: how many, and the name of one.
SELECT count(*), min(rows.custom_id)
FROM outcomes
LEFT JOIN settlements ON settlements.attempt = outcomes.attempt
LEFT JOIN rows ON rows.id = outcomes.row
WHERE outcomes.state = 'done' AND (settlements.billed IS NOT 'yes' OR settlements.error IS NOT NULL);

-- name: check_packs
-- Attempts of rows that there are not, or of none: how many, and one of them.
SELECT count(*), min(id) FROM attempts
WHERE CASE
  WHEN NOT json_valid(attempts.rows) THEN TRUE
  ELSE json_array_length(attempts.rows) = 0 OR EXISTS (
    SELECT 1 FROM json_each(attempts.rows) AS packed LEFT JOIN rows ON rows.id = packed.value
    WHERE rows.id IS NULL
  )
END;

-- name: check_ends
-- Rows that ended by an attempt of other rows: how many, and the name of one.
SELECT count(*), min(rows.custom_id)
FROM outcomes
JOIN attempts ON attempts.id = outcomes.attempt
LEFT JOIN rows ON rows.id = outcomes.row
WHERE CASE
  WHEN NOT json_valid(attempts.rows) THEN TRUE
  ELSE outcomes.row NOT IN (SELECT value FROM json_each(attempts.rows))
END;
