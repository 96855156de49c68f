-- The first catalogue. Stats: power in kW, mass with the driver in kg, grip as a multiple of the weight, drag area in m2.

INSERT INTO slots (id) VALUES ('engine'), ('turbo'), ('tyres'), ('spoiler'), ('chassis'), ('paint');

INSERT INTO cars (id, name, model, texture, price, power_kw, mass_kg, grip, drag_m2) VALUES
    ('pebble', 'Pebble', 'cars/pebble/model.glb', 'cars/pebble/texture.png', 500, 66, 1010, 0.90, 0.66),
    ('magpie', 'Magpie GT', 'cars/magpie/model.glb', 'cars/magpie/texture.png', 1200, 110, 1180, 0.95, 0.63),
    ('heron', 'Heron Estate', 'cars/heron/model.glb', 'cars/heron/texture.png', 2000, 165, 1560, 1.00, 0.65),
    ('badger', 'Badger V8', 'cars/badger/model.glb', 'cars/badger/texture.png', 3500, 310, 1780, 1.00, 0.76),
    ('vixen', 'Vixen RS', 'cars/vixen/model.glb', 'cars/vixen/texture.png', 5000, 260, 1290, 1.10, 0.61),
    ('adder', 'Adder S', 'cars/adder/model.glb', 'cars/adder/texture.png', 8000, 380, 1450, 1.15, 0.62),
    ('kestrel', 'Kestrel R', 'cars/kestrel/model.glb', 'cars/kestrel/texture.png', 14000, 515, 1480, 1.25, 0.68),
    ('thunderhead', 'Thunderhead', 'cars/thunderhead/model.glb', 'cars/thunderhead/texture.png', 25000, 745, 1350, 1.45, 0.72);

INSERT INTO car_slots (car, slot) VALUES
    ('pebble', 'engine'), ('pebble', 'tyres'), ('pebble', 'paint'),
    ('magpie', 'engine'), ('magpie', 'turbo'), ('magpie', 'tyres'), ('magpie', 'paint'),
    ('heron', 'engine'), ('heron', 'turbo'), ('heron', 'tyres'), ('heron', 'chassis'), ('heron', 'paint'),
    ('badger', 'engine'), ('badger', 'tyres'), ('badger', 'spoiler'), ('badger', 'chassis'), ('badger', 'paint'),
    ('vixen', 'engine'), ('vixen', 'turbo'), ('vixen', 'tyres'), ('vixen', 'spoiler'), ('vixen', 'chassis'), ('vixen', 'paint'),
    ('adder', 'engine'), ('adder', 'turbo'), ('adder', 'tyres'), ('adder', 'spoiler'), ('adder', 'chassis'), ('adder', 'paint'),
    ('kestrel', 'engine'), ('kestrel', 'turbo'), ('kestrel', 'tyres'), ('kestrel', 'spoiler'), ('kestrel', 'chassis'), ('kestrel', 'paint'),
    ('thunderhead', 'engine'), ('thunderhead', 'turbo'), ('thunderhead', 'tyres'), ('thunderhead', 'spoiler'), ('thunderhead', 'chassis'), ('thunderhead', 'paint');

INSERT INTO items (id, name, slot, model, texture, price, add_power_kw, add_mass_kg, add_grip, add_drag_m2) VALUES
    ('engine-tuned', 'Tuned engine', 'engine', 'items/engine-tuned/model.glb', 'items/engine-tuned/texture.png', 400, 12, 0, 0, 0),
    ('engine-sport', 'Sport engine', 'engine', 'items/engine-sport/model.glb', 'items/engine-sport/texture.png', 900, 30, 10, 0, 0),
    ('engine-race', 'Race engine', 'engine', 'items/engine-race/model.glb', 'items/engine-race/texture.png', 2200, 65, 15, 0, 0),
    ('engine-big-block', 'Big block', 'engine', 'items/engine-big-block/model.glb', 'items/engine-big-block/texture.png', 4000, 120, 70, 0, 0),
    ('turbo-small', 'Small turbo', 'turbo', 'items/turbo-small/model.glb', 'items/turbo-small/texture.png', 600, 20, 12, 0, 0),
    ('turbo-twin', 'Twin turbo', 'turbo', 'items/turbo-twin/model.glb', 'items/turbo-twin/texture.png', 1800, 55, 24, 0, 0),
    ('turbo-compressor', 'Compressor', 'turbo', 'items/turbo-compressor/model.glb', 'items/turbo-compressor/texture.png', 2600, 75, 40, 0, 0.01),
    ('tyres-street', 'Street tyres', 'tyres', 'items/tyres-street/model.glb', 'items/tyres-street/texture.png', 100, 0, 0, 0.02, 0),
    ('tyres-sport', 'Sport tyres', 'tyres', 'items/tyres-sport/model.glb', 'items/tyres-sport/texture.png', 350, 0, 2, 0.10, 0),
    ('tyres-semi-slick', 'Semi-slicks', 'tyres', 'items/tyres-semi-slick/model.glb', 'items/tyres-semi-slick/texture.png', 800, 0, 4, 0.20, 0),
    ('tyres-drag-slick', 'Drag slicks', 'tyres', 'items/tyres-drag-slick/model.glb', 'items/tyres-drag-slick/texture.png', 1600, 0, 12, 0.40, 0.02),
    ('spoiler-lip', 'Lip spoiler', 'spoiler', 'items/spoiler-lip/model.glb', 'items/spoiler-lip/texture.png', 250, 0, 2, 0.01, -0.01),
    ('spoiler-wing', 'Rear wing', 'spoiler', 'items/spoiler-wing/model.glb', 'items/spoiler-wing/texture.png', 700, 0, 6, 0.05, 0.03),
    ('spoiler-drag', 'Wheelie wing', 'spoiler', 'items/spoiler-drag/model.glb', 'items/spoiler-drag/texture.png', 1500, 0, 9, 0.08, 0.02),
    ('chassis-stripped', 'Stripped interior', 'chassis', 'items/chassis-stripped/model.glb', 'items/chassis-stripped/texture.png', 500, 0, -80, 0, 0),
    ('chassis-carbon', 'Carbon panels', 'chassis', 'items/chassis-carbon/model.glb', 'items/chassis-carbon/texture.png', 3000, 0, -160, 0, -0.01),
    ('paint-red', 'Signal red', 'paint', 'items/paint/model.glb', 'items/paint-red/texture.png', 50, 0, 0, 0, 0),
    ('paint-midnight', 'Midnight blue', 'paint', 'items/paint/model.glb', 'items/paint-midnight/texture.png', 50, 0, 0, 0, 0),
    ('paint-flames', 'Flames', 'paint', 'items/paint/model.glb', 'items/paint-flames/texture.png', 300, 0, 0, 0, 0),
    ('paint-chrome', 'Chrome', 'paint', 'items/paint/model.glb', 'items/paint-chrome/texture.png', 1000, 0, 1, 0, 0);
