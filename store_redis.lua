-- The scripts of store_redis.py, whose docstring describes the keys.
--
-- Redis runs a script alone and whole. ARGV is the name of a verb, below, and its arguments. Before
-- this text come FIELDS, the names of a user's fields, and PIECE, at how many hashes a verb looks.

local verbs = {}

local function read(id)
  return redis.call('HMGET', 'roster:user:' .. id, unpack(FIELDS))
end

-- Write the fields and values in ARGV; NUL stands for null, for which a hash has no field.
local function write(id, first, last)
  local user, values, nulls = 'roster:user:' .. id, {}, {}
  for i = first, last, 2 do
    if ARGV[i + 1] == '\0' then
      table.insert(nulls, ARGV[i])
    else
      table.insert(values, ARGV[i])
      table.insert(values, ARGV[i + 1])
    end
  end
  redis.call('HSET', user, unpack(values))
  if #nulls > 0 then redis.call('HDEL', user, unpack(nulls)) end
end

local function list(id)
  local name_key = redis.call('HGET', 'roster:user:' .. id, 'name_key') or ''
  redis.call('DEL', 'roster:search:' .. string.sub(id, 1, 17))
  redis.call('ZADD', 'roster:by_id', 0, id)
  redis.call('ZADD', 'roster:by_name', 0, name_key .. '\0' .. id)
end

local function remove(id)
  local user = 'roster:user:' .. id
  local name_key, email_key = unpack(redis.call('HMGET', user, 'name_key', 'email_key'))
  redis.call('HDEL', 'roster:emails', email_key or '')
  redis.call('ZREM', 'roster:by_id', id)
  redis.call('ZREM', 'roster:by_name', (name_key or '') .. '\0' .. id)
  redis.call('DEL', user, 'roster:search:' .. string.sub(id, 1, 17))
end

-- ARGV: "skip" or "fail", how many texts a user has, the last id after which there are just enough;
-- then for each user its email_key, and fields and their values.
function verbs.add()
  local seen, free, taken, ids, wide = {}, {}, {}, {}, tonumber(ARGV[2])
  for i = 4, #ARGV, wide do
    local email_key = ARGV[i]
    if seen[email_key] or redis.call('HEXISTS', 'roster:emails', email_key) == 1 then
      table.insert(taken, (i - 4) / wide)
    else
      table.insert(free, i)
    end
    seen[email_key] = true
  end
  if #taken > 0 and ARGV[1] == 'fail' then return {taken, ids} end
  -- Lua's numbers are floating point: ids and versions stay text.
  local function last_id()
    local short = redis.call('GET', 'roster:last_id') or '0'
    return string.rep('0', 19 - #short) .. short, short
  end
  if last_id() > ARGV[3] then return redis.error_reply('FULL no id is left') end
  for _, i in ipairs(free) do
    redis.call('INCR', 'roster:last_id')
    local id, short = last_id()
    redis.call('HSET', 'roster:user:' .. id, 'id', short)
    write(id, i + 1, i + wide - 1)
    redis.call('HSET', 'roster:emails', ARGV[i], id)
    list(id)
    table.insert(ids, short)
  end
  return {taken, ids}
end

-- ARGV: an email_key.
function verbs.holder()
  local id = redis.call('HGET', 'roster:emails', ARGV[1])
  return id and {read(id)} or {}
end

-- ARGV: a sorted set, "-" for the highest first, the members between which to look, at how many of
-- them, for how many users, words. Returns 1 if there are no more, or 0, and the users.
function verbs.walk()
  local set, sign, low, high, few, limit = unpack(ARGV)
  local range = {'(' .. low, '(' .. high, 'BYLEX', 'LIMIT', 0, few}
  if sign == '-' then range = {'(' .. high, '(' .. low, 'BYLEX', 'REV', 'LIMIT', 0, few} end
  local members = redis.call('ZRANGE', set, unpack(range))
  local rows = {#members < tonumber(few) and 1 or 0}
  for _, member in ipairs(members) do
    local id, fits = string.sub(member, -19), true
    local search_key = ARGV[7] and redis.call('HGET', 'roster:user:' .. id, 'search_key') or ''
    for i = 7, #ARGV do fits = fits and string.find(search_key, ARGV[i], 1, true) end
    if fits then table.insert(rows, read(id)) end
    if #rows > tonumber(limit) then break end
  end
  return rows
end

-- Return the search text of a hundred users, and at how many of them it had to look: each search
-- key, NUL, the id, and a character that no key has.
local function text_of(hundred)
  local key = 'roster:search:' .. hundred
  local text = redis.call('GET', key)
  if text then return text, 0 end
  local ids = redis.call('ZRANGE', 'roster:by_id', '[' .. hundred, '(' .. hundred .. 'x', 'BYLEX')
  local parts = {}
  for i, id in ipairs(ids) do
    local search_key = redis.call('HGET', 'roster:user:' .. id, 'search_key') or ''
    parts[i] = search_key .. '\0' .. id .. '\1'
  end
  text = table.concat(parts)
  redis.pcall('SET', key, text) -- unless the memory is full
  return text, #ids
end

-- ARGV: what to return ("id", "name": members of a sorted set; "count"), "-" for the highest first,
-- the id after which to look or "", for how many at most, a prefix of names or "", words. Returns
-- the members, the id after which to look on, and the count.
function verbs.find()
  local what, sign, after, limit, prefix = unpack(ARGV)
  local find, sub, word = string.find, string.sub, ARGV[6] or ''
  local down, next_id = sign == '-', {'+', 'BYLEX', 'LIMIT', 0, 1}
  if down then next_id = {'-', 'BYLEX', 'REV', 'LIMIT', 0, 1} end
  local looked, found, count, check = 0, {}, 0, what == 'name' or prefix ~= ''
  while looked < PIECE do
    local from = after ~= '' and '(' .. after or down and '+' or '-'
    local first = redis.call('ZRANGE', 'roster:by_id', from, unpack(next_id))[1]
    if not first then return {found, false, count} end
    local hundred, hits = sub(first, 1, 17), {}
    local text, read_now = text_of(hundred)
    local at, start = find(text, word, 1, true), 1
    for i = 7, #ARGV do at = find(text, ARGV[i], 1, true) and at end
    while at and at <= #text do
      local stop = find(text, '\1', start, true)
      if stop > at then
        local search_key, fits = sub(text, start, stop - 21), at <= stop - 20 -- not in an id
        for i = 7, #ARGV do fits = fits and find(search_key, ARGV[i], 1, true) end
        if fits then table.insert(hits, sub(text, stop - 19, stop - 1)) end
        at = find(text, word, stop + 1, true)
      end
      start = stop + 1
    end
    looked = looked + read_now
    for i = 1, #hits do
      local id = hits[down and #hits + 1 - i or i]
      local fits = after == '' or (down and id < after) or (not down and id > after)
      local name_key = ''
      if fits and check then
        name_key = redis.call('HGET', 'roster:user:' .. id, 'name_key') or ''
        fits = sub(name_key, 1, #prefix) == prefix
        looked = looked + 1
      end
      if fits then
        count = count + 1
        if what == 'id' then table.insert(found, id) end
        if what == 'name' then table.insert(found, name_key .. '\0' .. id) end
        if count == tonumber(limit) then return {found, id, count} end
      end
    end
    looked, after = looked + 5 + #hits / 2, hundred .. (down and '00' or '99')
  end
  return {found, after, count}
end

-- ARGV: ids.
function verbs.read()
  local rows = {}
  for i, id in ipairs(ARGV) do rows[i] = read(id) end
  return rows
end

-- What keeps a change from being done; nil if nothing does. ARGV: the id, the versions that may be
-- changed or "" for any.
local function refusal()
  local version = redis.call('HGET', 'roster:user:' .. ARGV[1], 'version')
  if not version then return 'not found' end
  if ARGV[2] ~= '' and not string.find(ARGV[2], ' ' .. version .. ' ', 1, true) then
    return 'stale'
  end
end

-- A time to the millisecond, in digits that compare alike in every locale.
local function millis(time)
  return string.sub(time, 1, 19) .. (string.match(time, '%.(%d%d%d)') or '000')
end

-- ARGV, besides: fields and their values.
function verbs.change()
  local refused = refusal()
  if refused then return refused end
  local id = ARGV[1]
  local user = 'roster:user:' .. id
  local email_key, name_key, search_key =
    unpack(redis.call('HMGET', user, 'email_key', 'name_key', 'search_key'))
  local new_key, changed = email_key, false
  for i = 3, #ARGV, 2 do
    local field, value = ARGV[i], ARGV[i + 1]
    local stored = redis.call('HGET', user, field) or '\0'
    if field == 'email_key' then new_key = value end
    if field == 'updated_at' then -- the clock may have been set back
      if millis(stored) > millis(value) then ARGV[i + 1] = stored end
    elseif field ~= 'search_key' then
      changed = changed or stored ~= value
    else
      local name, email = string.match(value, '^(.*)\n(.*)$')
      local old_name, old_email = string.match(search_key or '', '^(.*)\n(.*)$')
      name, email = name == '\0' and old_name or name, email == '\0' and old_email or email
      ARGV[i + 1] = search_key and name .. '\n' .. email or '\0' -- the next start makes it
    end
  end
  local holder = redis.call('HGET', 'roster:emails', new_key)
  if holder and holder ~= id then return 'taken' end
  if changed then
    write(id, 3, #ARGV)
    redis.call('HINCRBY', user, 'version', 1)
    redis.call('HDEL', 'roster:emails', email_key)
    redis.call('HSET', 'roster:emails', new_key, id)
    redis.call('ZREM', 'roster:by_name', (name_key or '') .. '\0' .. id)
    list(id)
  end
  return read(id)
end

function verbs.remove()
  local refused = refusal()
  if refused then return refused end
  remove(ARGV[1])
  return 'removed'
end

-- ARGV: the newest id, how many ids to remove, how many texts a user has; the ids in 19 digits;
-- then for each user the id, its email_key, and fields and their values. An address is free only
-- from the next call on.
function verbs.restore()
  if (redis.call('GET', 'roster:last_id') or '0') ~= ARGV[1] then return 'stale' end
  local first, wide = 4 + ARGV[2], tonumber(ARGV[3])
  for i = first, #ARGV, wide do
    if redis.call('EXISTS', 'roster:user:' .. ARGV[i]) == 1
      or redis.call('HEXISTS', 'roster:emails', ARGV[i + 1]) == 1 then return 'taken' end
  end
  for i = 4, first - 1 do remove(ARGV[i]) end
  for i = first, #ARGV, wide do
    local id = ARGV[i]
    write(id, i + 2, i + wide - 1)
    redis.call('HSET', 'roster:emails', ARGV[i + 1], id)
    list(id)
  end
end

-- ARGV: the newest id as it was, and as it will be.
function verbs.set_last_id()
  if (redis.call('GET', 'roster:last_id') or '0') ~= ARGV[1] then return 'stale' end
  redis.call('SET', 'roster:last_id', ARGV[2])
end

-- Return users of release 1.0.0, which have no search_key. ARGV: "+", or "(" and the id below which
-- to look. Returns how many may be left, the id below which to look on, and the users.
function verbs.old()
  local ids = redis.call('ZRANGE', 'roster:by_id', ARGV[1], '-', 'BYLEX', 'REV', 'LIMIT', 0, PIECE)
  local rows = {redis.call('ZLEXCOUNT', 'roster:by_id', '-', ARGV[1]), ids[#ids] or false}
  for _, id in ipairs(ids) do
    if redis.call('HEXISTS', 'roster:user:' .. id, 'search_key') == 0 then
      table.insert(rows, read(id))
    end
  end
  return rows
end

-- Give users their search_key. ARGV: for each, the id in 19 digits, version, email_key, search_key.
function verbs.convert()
  for i = 1, #ARGV, 4 do
    local id, user = ARGV[i], 'roster:user:' .. ARGV[i]
    local version, email_key = unpack(redis.call('HMGET', user, 'version', 'email_key'))
    if version == ARGV[i + 1] then
      redis.call('HSET', user, 'email_key', ARGV[i + 2], 'search_key', ARGV[i + 3])
      redis.call('HDEL', 'roster:emails', email_key)
      redis.call('HSET', 'roster:emails', ARGV[i + 2], id)
      list(id)
    end
  end
end

return verbs[table.remove(ARGV, 1)]()
