alter table notes rename title to headline;
\! ./schema pause inside || touch /var/lib/matrix/fails-inside
\if `test -e /var/lib/matrix/fails-inside && echo true || echo false`
select 1 from a_table_that_is_not_there;
\endif
