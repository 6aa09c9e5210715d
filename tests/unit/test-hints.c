/* SPDX-License-Identifier: Apache-2.0 */
/* Which of several ways to store a tensor are worth writing down. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/hints.h"

static void test_keep_best(void **state)
{
	struct container_hint ways[] = {
		{.codec = 1, .decode_ps = 600, .stored_bytes = 50, .encode_ps = 9},
		{.codec = 2, .decode_ps = 40, .stored_bytes = 100, .encode_ps = 9},
		{.codec = 3, .decode_ps = 300, .stored_bytes = 60, .encode_ps = 9},
		{.codec = 4, .decode_ps = 400, .stored_bytes = 60, .encode_ps = 1}, /* slower, as large */
		{.codec = 5, .decode_ps = 700, .stored_bytes = 55, .encode_ps = 1}, /* slower, larger */
		{.codec = 6, .decode_ps = 300, .stored_bytes = 60, .encode_ps = 8}, /* as 3, encodes faster */
		{.codec = 7, .decode_ps = 39, .stored_bytes = 101, .encode_ps = 9}, /* fastest of all */
	};
	static const uint8_t kept[] = {7, 2, 6, 1};

	assert_int_equal(hints_keep_best(ways, 7), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(ways[i].codec, kept[i]);
	assert_int_equal(hints_keep_best(ways, 1), 1);
	assert_int_equal(hints_keep_best(ways, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keep_best),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
