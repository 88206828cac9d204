create table notes (title text);
insert into notes values ('one'), ('two');
