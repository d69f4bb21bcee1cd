-- Which readings are whose may change after they came: a site's operators merge and split devices. The face of a
-- reading (what the device showed of itself) never changes, and news name the device that a face belongs to.
ALTER TABLE readings ADD COLUMN face TEXT NOT NULL DEFAULT '';
CREATE INDEX readings_by_face ON readings (site, face) WHERE face <> '';

-- What a human on site typed, over what the device says; NULL where nobody did.
ALTER TABLE devices ADD COLUMN typed_name TEXT;
ALTER TABLE devices ADD COLUMN typed_location TEXT;
ALTER TABLE devices ADD COLUMN typed_asset TEXT;
-- When it left the reports because it was not read for too long; 0 while it is in them.
ALTER TABLE devices ADD COLUMN expired_at_ms INTEGER NOT NULL DEFAULT 0;
