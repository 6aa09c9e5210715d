/* SPDX-License-Identifier: Apache-2.0 */
/* The budget: charges, refusals, kinds, peak, and the limit of a cgroup. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/budget.h"
#include "daemon/store.h"

static void test_charges_add_up(void **state)
{
	struct budget budget, now;
	struct charge a, b, c = {0};

	budget_init(&budget, 1000);
	assert_int_equal(budget_charge(&budget, BUDGET_COMPRESSED, 600, &a), 0);
	assert_int_equal(budget_charge(&budget, BUDGET_DECODED, 400, &b), 0);
	assert_int_equal(budget_charge(&budget, BUDGET_DECODED, 1, &c), STORE_E_BUDGET);
	assert_null(c.budget);
	charge_move(&b, BUDGET_RETIRED);
	budget_get(&budget, &now);
	assert_int_equal(now.used[BUDGET_DECODED], 0);
	assert_int_equal(now.used[BUDGET_RETIRED], 400);
	assert_int_equal(now.total, 1000);
	charge_release(&a);
	charge_release(&a); /* once is enough */
	assert_true(budget_has_room(&budget, 600));
	assert_false(budget_has_room(&budget, 601));
	assert_int_equal(budget_charge(&budget, BUDGET_INDEX, UINT64_MAX, &c), STORE_E_BUDGET);
	charge_release(&b);
	budget_get(&budget, &now);
	assert_int_equal(now.total, 0);
	assert_int_equal(now.peak, 1000);
	budget_destroy(&budget);
}

static void test_cgroup_limits(void **state)
{
	const uint64_t mib = 1 << 20;

	assert_int_equal(budget_effective(100 * mib, UINT64_MAX), 100 * mib);
	assert_int_equal(budget_effective(100 * mib, 1000 * mib), 100 * mib);
	assert_int_equal(budget_effective(100 * mib, 100 * mib), 36 * mib);
	assert_int_equal(budget_effective(100 * mib, 10 * mib), 0);
	assert_true(budget_cgroup_limit() > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_charges_add_up),
		cmocka_unit_test(test_cgroup_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
