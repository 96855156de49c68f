-- Applies operations to the projections, together with the watermark, or not at all.
-- Returns where the projections stand afterwards; -1 when they are of another log.
local mark, sessions, players, queues = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local log, from, to = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('HGET', mark, 'log') ~= log then return -1 end
local at = tonumber(redis.call('HGET', mark, 'seq'))
-- Another projector was here: the caller goes on from where that one left it.
if at ~= from then return at end

local function count(state, by)
  if not state then return end
  local player = cjson.decode(state)
  if player.status ~= 'waiting' then return end
  if redis.call('HINCRBY', queues, player.queue, by) <= 0 then redis.call('HDEL', queues, player.queue) end
end

for _, op in ipairs(cjson.decode(ARGV[4])) do
  if op.player then
    count(redis.call('HGET', players, op.player), -1)
    if op.state then
      redis.call('HSET', players, op.player, op.state)
      count(op.state, 1)
    else
      redis.call('HDEL', players, op.player)
    end
  elseif op.patch then
    local present = redis.call('HGET', sessions, op.session)
    local session = present and cjson.decode(present) or {}
    for field, value in pairs(op.patch) do session[field] = value end
    -- A session whose beginning the log no longer has is not shown.
    if session.queue then redis.call('HSET', sessions, op.session, cjson.encode(session)) end
  else
    redis.call('HDEL', sessions, op.session)
  end
end
redis.call('HSET', mark, 'seq', ARGV[3])
return to
