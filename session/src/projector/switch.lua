-- Puts the projections that were made anew (the second half of the keys) in the place of the live ones (the first),
-- unless these are further: than the new ones, and not than the log itself, whose last sequence ARGV[2] is.
-- Returns where the live ones stand afterwards; -1 when what was made anew is not there, or of another log.
local log, count = ARGV[1], #KEYS / 2
if redis.call('HGET', KEYS[count + 1], 'log') ~= log then return -1 end
local anew = tonumber(redis.call('HGET', KEYS[count + 1], 'seq'))
if redis.call('HGET', KEYS[1], 'log') == log then
  local at = tonumber(redis.call('HGET', KEYS[1], 'seq'))
  -- Nobody who reads may see a match undone.
  if at > anew and at <= tonumber(ARGV[2]) then return at end
end
for i = 1, count do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[count + i]) == 1 then redis.call('RENAME', KEYS[count + i], KEYS[i]) end
end
return anew
